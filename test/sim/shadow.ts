// The server that gets mirrored requests: it checks that they are what the client has sent, and answers, if at all,
// with what no client may ever see.

import type { ShadowManner } from './features.ts';
import {
  CodecError,
  declaredFraming,
  encodeHead,
  type Framing,
  field,
  type Head,
  latin1,
  MessageReader,
} from './http-codec.ts';
import type { Judge } from './judge.ts';
import type { DialOutcome, Endpoint } from './kernel.ts';
import { Direction, PayloadChecker } from './payload.ts';
import { Peer } from './peer.ts';
import { drawPace, type RequestPlan } from './plan.ts';
import type { Random } from './random.ts';
import type { Scheduler } from './scheduler.ts';
import type { SimSocket } from './tcp.ts';

/** Added to the number of a request in the answer to its mirror. */
const ID_SHIFT = 1_000_000;

/** Where the shadow server is. */
export const shadowAddress = { host: '10.3.0.1', port: 80 };

export class ShadowServer implements Endpoint {
  readonly judge: Judge;
  readonly scheduler: Scheduler;
  private readonly manner: ShadowManner;
  private readonly random: Random;
  private readonly connections = new Set<ShadowConnection>();

  constructor(manner: ShadowManner, scheduler: Scheduler, random: Random, judge: Judge) {
    this.manner = manner;
    this.scheduler = scheduler;
    this.random = random;
    this.judge = judge;
  }

  /** How it behaves this time. */
  draw(): ShadowManner {
    if (this.manner !== 'all') return this.manner;
    return this.random.pick(['good', 'refuses', 'silent', 'resets', 'garbage', 'dribbles']);
  }

  dial(): DialOutcome {
    const delayMs = this.random.between(0, 3);
    return this.draw() === 'refuses' ? { type: 'refuse', delayMs } : { type: 'accept', delayMs };
  }

  connected(socket: SimSocket): void {
    this.connections.add(new ShadowConnection(this, socket, this.scheduler, this.random.fork()));
  }

  /** Closes every connection, if it is one that does such things: the server is being shut down. */
  closeAll(): void {
    if (this.manner === 'good') return;
    for (const connection of this.connections) connection.leave('close');
  }
}

class ShadowConnection extends Peer {
  private readonly server: ShadowServer;
  private readonly reader: MessageReader;
  private request: RequestPlan | undefined;
  private checker: PayloadChecker | undefined;

  constructor(server: ShadowServer, socket: SimSocket, scheduler: Scheduler, random: Random) {
    super(socket, scheduler, random, drawPace(random, server.judge.troubles, false));
    this.server = server;
    this.reader = new MessageReader({
      head: (head) => this.head(head),
      body: (bytes) => this.body(bytes),
      end: (trailers) => this.end(trailers),
    });
  }

  protected connected(): void {}

  protected cut(): void {}

  leave(how: 'close' | 'reset'): void {
    if (!this.gone) this.close(how);
  }

  protected received(bytes: Uint8Array): void {
    try {
      this.reader.feed(bytes);
    } catch (error) {
      if (!(error instanceof CodecError)) throw error;
      this.server.judge.violation(`the shadow received what is not right: ${error.message}`);
      this.leave('close');
    }
  }

  protected ended(): void {
    this.leave('close');
  }

  private head(head: Head): Framing {
    const match = /^([A-Z]+) \/r\/([0-9]+)(?:\?q=([0-9]+))? HTTP\/1\.1$/.exec(head.startLine);
    if (match === null) throw new CodecError(`the request line "${head.startLine}"`);
    const plan = this.server.judge.mirrored(Number(match[2]));
    if (plan === undefined) throw new CodecError(`request ${match[2]}, which nobody sent`);
    const where = `the mirror of request ${plan.id}`;
    if (match[1] !== plan.method) throw new CodecError(`${where}: method ${match[1]}`);
    if (field(head, 'x-sim') !== String(plan.id)) throw new CodecError(`${where}: x-sim is ${field(head, 'x-sim')}`);
    if (field(head, 'host') !== plan.host) throw new CodecError(`${where}: host is ${field(head, 'host')}`);
    if (field(head, 'x-hop') !== undefined) throw new CodecError(`${where}: a field that Connection had named`);
    if ((field(head, 'x-extra') ?? '').length !== plan.extraFieldBytes) throw new CodecError(`${where}: x-extra`);
    this.request = plan;
    this.checker = new PayloadChecker(plan.id, Direction.REQUEST);
    return declaredFraming(head) ?? { type: 'none' };
  }

  private body(bytes: Uint8Array): void {
    const wrong = this.checker!.check(bytes);
    if (wrong >= 0) throw new CodecError(`byte ${wrong} of the mirror of request ${this.request!.id} is wrong`);
  }

  private end(trailers: [string, string][]): void {
    const plan = this.request!;
    const got = this.checker!.position;
    if (got !== plan.bytes || trailers.length > 0) {
      throw new CodecError(
        `the mirror of request ${plan.id} has ${got} of ${plan.bytes} bytes, ${trailers.length} trailers`,
      );
    }
    this.scheduler.after(this.random.between(0, 30), () => {
      if (!this.gone) this.answer(plan);
    });
  }

  private answer(plan: RequestPlan): void {
    const length = this.random.size(0, 30_000);
    const head = encodeHead(`HTTP/1.1 ${this.random.pick([200, 500, 503])} Shadow`, [
      ['X-Sim-Id', String(plan.id + ID_SHIFT)],
      ['Content-Length', String(length)],
    ]);
    switch (this.server.draw()) {
      case 'silent':
        return;
      case 'resets':
        this.leave('reset');
        return;
      case 'garbage':
        this.write(latin1('garbage\r\n\r\n'));
        return;
      case 'dribbles':
        // It never comes to the end.
        this.write(head.subarray(0, this.random.int(1, head.length)));
        return;
      default:
        this.write(head);
        if (plan.method !== 'HEAD') this.write(new Uint8Array(length).fill(115));
    }
  }
}
