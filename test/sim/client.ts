// Simulated clients: each plays the script of one connection and reports what it sees of every request.

import {
  CodecError,
  connectionHas,
  declaredFraming,
  encodeChunk,
  encodeHead,
  encodeLastChunk,
  type Framing,
  field,
  type Head,
  latin1,
  MessageReader,
} from './http-codec.ts';
import type { Judge } from './judge.ts';
import { Direction, PayloadChecker, payload } from './payload.ts';
import { Peer, type StreamEnd } from './peer.ts';
import { type ClientPlan, limitedRequests, type RequestPlan, unroutedHost } from './plan.ts';
import type { Random } from './random.ts';
import type { Scheduler } from './scheduler.ts';
import type { SimSocket } from './tcp.ts';

/** Name of the field that carries the reason of a generated response in simulated runs. */
export const REASON_FIELD = 'x-reason';

/** How long a client waits for 100 Continue before it sends the body anyway (RFC 9110 §10.1.1). */
const CONTINUE_WAIT_MS = 1000;

/** The response that is being read. */
interface Reading {
  plan: RequestPlan;
  status: number;
  interim: boolean;
  /** Made by the gateway: its reason flag. */
  flag: string | undefined;
  checker: PayloadChecker;
  tunnel: boolean;
}

/**
 * One client connection. `again` is given the requests that it did not come to send, and says whether
 * another connection takes them.
 */
export class SimClient extends Peer {
  /** Everything this client wanted is over. */
  done = false;
  private readonly script: ClientPlan;
  private readonly judge: Judge;
  private readonly name: string;
  private readonly again: (rest: RequestPlan[]) => boolean;
  private readonly reader: MessageReader;
  private readonly outstanding: RequestPlan[] = [];
  private reading: Reading | undefined;
  private next = 0;
  private held: Uint8Array | undefined;
  private waiting = false;
  private serverCloses = false;
  private receivedBytes = 0;
  private answers = 0;
  private left = false;

  constructor(
    name: string,
    socket: SimSocket,
    scheduler: Scheduler,
    random: Random,
    script: ClientPlan,
    judge: Judge,
    again: (rest: RequestPlan[]) => boolean,
  ) {
    super(socket, scheduler, random, script.pace);
    this.again = again;
    this.name = name;
    this.script = script;
    this.judge = judge;
    this.reader = new MessageReader({
      head: (head) => this.head(head),
      body: (bytes) => this.body(bytes),
      end: () => this.end(),
    });
    if (script.cut !== undefined) this.cutAt(script.cut.atByte, script.cut.how);
  }

  protected connected(): void {
    this.issue();
  }

  protected cut(how: 'close' | 'reset' | 'stall'): void {
    // A client that has fallen silent still waits for what the gateway has to say.
    if (how === 'stall') this.giveUpRest();
    else this.leave();
  }

  protected received(bytes: Uint8Array): void {
    this.receivedBytes += bytes.length;
    try {
      this.reader.feed(bytes);
    } catch (error) {
      if (!(error instanceof CodecError)) throw error;
      this.judge.violation(`${this.name} received what is not HTTP: ${error.message}`);
      this.leave();
      this.close('reset');
      return;
    }
    const leaving = this.script.leaveAtByte;
    if (leaving === undefined || this.receivedBytes < leaving.atByte || this.done) return;
    if (leaving.how === 'freeze') this.freeze();
    else this.close(leaving.how);
    this.leave();
  }

  protected ended(how: StreamEnd): void {
    const idle = this.outstanding.length === 0 && this.next < this.script.requests.length;
    if (how === 'refused') this.judge.refused(this.name, this.script.extraListener);
    else if (idle && !this.serverCloses) this.judge.endedEarly(this.name, how, this.script.extraListener);
    const result = how === 'fin' ? this.reader.finishStream() : this.reader.isBetween() ? 'between' : 'truncated';
    const { reading } = this;
    if (reading?.tunnel === true) {
      this.endTunnel(how);
      return;
    }
    if (result === 'truncated' && reading !== undefined && !reading.interim) {
      this.outstanding.shift();
      this.judge.outcome(reading.plan.id, { type: 'truncated', why: how });
      // The requests behind it could not be answered any more.
      this.serverCloses = true;
    }
    for (const plan of this.outstanding.splice(0)) {
      const outcome = this.serverCloses
        ? ({ type: 'abandoned' } as const)
        : ({ type: 'unanswered', why: how } as const);
      this.judge.outcome(plan.id, outcome);
      // Whatever follows the first unanswered request had no chance.
      this.serverCloses = true;
    }
    this.leave();
    this.close('close');
  }

  /** No further reports: the rest of the script does not happen. */
  private leave(): void {
    if (this.left) return;
    this.left = true;
    for (const plan of this.outstanding.splice(0)) this.judge.outcome(plan.id, { type: 'left' });
    this.giveUpRest();
    this.done = true;
  }

  /** What has not been sent by now will not be, on this connection. */
  private giveUpRest(): void {
    const rest = this.script.requests.slice(this.next);
    this.next = this.script.requests.length;
    if (rest.length === 0 || this.again(rest)) return;
    for (const plan of rest) this.judge.outcome(plan.id, { type: 'left' });
  }

  // -- sending ---------------------------------------------------------------------

  /** Sends further requests as far as the script allows now. */
  private issue(): void {
    const { requests, pipeline } = this.script;
    while (this.next < requests.length && !this.serverCloses && this.held === undefined && !this.left) {
      const last = this.outstanding[this.outstanding.length - 1];
      // After HTTP/1.0, a close, or an upgrade nothing may follow before the answer is known.
      if (last !== undefined && (last.version === 0 || last.close || last.upgrade || last.malformed)) return;
      if (this.outstanding.length >= pipeline || this.waiting) return;
      this.send(requests[this.next++]!);
      if (this.script.thinkMsMax > 0 && this.random.chance(0.5)) {
        this.waiting = true;
        this.scheduler.after(this.random.float() * this.script.thinkMsMax, () => {
          this.waiting = false;
          if (!this.gone) this.issue();
        });
      }
    }
    if (this.next < requests.length || this.held !== undefined || this.left) return;
    if (this.script.halfClose) this.finishSending();
  }

  private send(plan: RequestPlan): void {
    this.outstanding.push(plan);
    this.judge.issued(plan.id, this.scheduler.nowMs);
    if (plan.malformed !== undefined) {
      this.write(malformedRequest(plan));
      return;
    }
    this.write(requestHead(plan));
    const body = requestBody(plan, this.random);
    if (!plan.expectContinue) {
      this.write(body);
      return;
    }
    this.held = body;
    this.scheduler.after(CONTINUE_WAIT_MS, () => this.release(plan));
  }

  /** Sends the body that was held back for 100 Continue. */
  private release(plan: RequestPlan): void {
    if (this.held === undefined || this.outstanding[this.outstanding.length - 1] !== plan || this.gone) return;
    this.write(this.held);
    this.held = undefined;
    this.issue();
  }

  // -- receiving -----------------------------------------------------------------------

  private head(head: Head): Framing {
    const plan = this.outstanding[0];
    const match = /^HTTP\/1\.1 ([1-5][0-9][0-9]) [\t\x20-\x7e]*$/.exec(head.startLine);
    if (match === null) throw new CodecError(`the status line "${head.startLine}"`);
    if (plan === undefined) throw new CodecError(`"${head.startLine}" that no request asked for`);
    const status = Number(match[1]);
    const own = field(head, 'x-sim-id');
    if (own !== undefined && Number(own) !== plan.id) {
      throw new CodecError(`the response to request ${own} where that to ${plan.id} was due`);
    }
    const tunnel = status === 101;
    const interim = status < 200 && !tunnel;
    const direction = tunnel ? Direction.TUNNEL_DOWN : Direction.RESPONSE;
    this.reading = {
      plan,
      status,
      interim,
      flag: own === undefined && !interim ? (field(head, REASON_FIELD) ?? '(none)') : undefined,
      checker: new PayloadChecker(plan.id, direction),
      tunnel,
    };
    if (interim) {
      if (plan.version === 0) throw new CodecError('an interim response to HTTP/1.0');
      if (status === 100) this.release(plan);
      return { type: 'none' };
    }
    this.checkFinalHead(head, plan, status, own !== undefined);
    if (tunnel) {
      this.startTunnel(plan);
      return { type: 'tunnel' };
    }
    return this.framing(head, plan, status);
  }

  private checkFinalHead(head: Head, plan: RequestPlan, status: number, own: boolean): void {
    const expected = upgrades(plan) ? 101 : plan.response.status;
    if (own && status !== expected) throw new CodecError(`status ${status} instead of ${expected}`);
    if (status === 101 && (!own || !plan.upgrade)) throw new CodecError('an upgrade that was not asked for');
    if (own && field(head, 'x-hop') !== undefined) throw new CodecError('a field that Connection had named');
    if (own && field(head, 'x-end') !== 'kept') throw new CodecError('an end-to-end field is missing');
    const closes = connectionHas(head, 'close') || (plan.version === 0 && !connectionHas(head, 'keep-alive'));
    if (!closes) return;
    this.serverCloses = true;
    if (!this.judge.mayClose(plan, !own)) {
      this.judge.violation(`the answer to request ${plan.id} ends the connection without a cause`);
    }
  }

  private framing(head: Head, plan: RequestPlan, status: number): Framing {
    const declared = declaredFraming(head);
    if (plan.version === 0 && declared?.type === 'chunked') throw new CodecError('a chunked response to HTTP/1.0');
    if (status === 204 && declared !== undefined) throw new CodecError('204 with a body length');
    // A gateway that refuses a head before it has read the method answers HEAD with a body: to such
    // an answer the end of the connection is the end.
    if (plan.method === 'HEAD' && this.reading!.flag !== undefined && this.serverCloses) return { type: 'close' };
    if (plan.method === 'HEAD' || status === 204 || status === 304) return { type: 'none' };
    if (declared !== undefined) return declared;
    this.serverCloses = true;
    return { type: 'close' };
  }

  private body(bytes: Uint8Array): void {
    const { reading } = this;
    if (reading === undefined || reading.flag !== undefined) return;
    const wrong = reading.checker.check(bytes);
    if (wrong >= 0) throw new CodecError(`byte ${wrong} of the body for request ${reading.plan.id} is wrong`);
  }

  private end(): void {
    const reading = this.reading!;
    this.reading = undefined;
    if (reading.interim) return;
    const { plan, status, flag } = reading;
    this.outstanding.shift();
    this.answers++;
    if (this.judge.troubles.limits && this.answers > limitedRequests) {
      this.judge.violation(`${this.answers} requests were answered on one connection`);
    }
    if (flag !== undefined) {
      this.judge.outcome(plan.id, { type: 'generated', status, flag });
    } else {
      const got = reading.checker.position;
      const expected = plan.method === 'HEAD' ? 0 : plan.response.bytes;
      if (got !== expected) {
        this.judge.violation(`the body for request ${plan.id} seemed complete with ${got} of ${expected} bytes`);
      }
      this.judge.outcome(plan.id, { type: 'complete', status });
    }
    // A final answer makes waiting for 100 Continue pointless; the body is sent all the same, since
    // the request announced it.
    if (this.outstanding.length === 0 && this.held !== undefined) {
      this.write(this.held);
      this.held = undefined;
    }
    this.afterResponse();
  }

  private afterResponse(): void {
    if (this.serverCloses) {
      // Some clients close at once, others wait for the server to do what it said.
      if (this.random.chance(0.5)) this.retire(this.random.float() * 5);
      else this.retire(30_000);
      return;
    }
    if (this.next >= this.script.requests.length && this.outstanding.length === 0) {
      this.retire(this.random.chance(0.9) ? this.random.float() * 20 : 100_000);
      return;
    }
    this.issue();
  }

  /** Everything has been answered: closes after a while, unless the gateway does so before. */
  private retire(delayMs: number): void {
    for (const plan of this.outstanding.splice(0)) this.judge.outcome(plan.id, { type: 'abandoned' });
    this.leave();
    this.scheduler.after(delayMs, () => this.close('close'));
  }

  // -- tunnels ----------------------------------------------------------------------------

  private startTunnel(plan: RequestPlan): void {
    this.write(payload(plan.id, Direction.TUNNEL_UP, 0, plan.tunnelBytes.client));
    this.finishSending();
  }

  private endTunnel(how: StreamEnd): void {
    const { plan, checker } = this.reading!;
    this.outstanding.shift();
    const expected = plan.tunnelBytes.upstream;
    if (how === 'fin' && checker.position !== expected) {
      this.judge.violation(`the tunnel of request ${plan.id} ended with ${checker.position} of ${expected} bytes`);
    }
    if (how === 'fin') this.judge.outcome(plan.id, { type: 'tunnel' });
    else this.judge.outcome(plan.id, { type: 'truncated', why: how });
    this.leave();
    // The other side has said everything; this one may not have.
    this.closeAfterSending('close');
  }
}

/** Whether the upstream will switch protocols for this request. */
function upgrades(plan: RequestPlan): boolean {
  return plan.upgrade && plan.upgradeAccepted && plan.response.fault === 'none';
}

/** The head of a request as its client sends it. */
function requestHead(plan: RequestPlan): Uint8Array {
  const host = plan.unrouted ? unroutedHost : plan.host;
  const target = `${plan.absoluteForm ? `http://${host}` : ''}/r/${plan.id}?q=${plan.id}`;
  const fields: [string, string][] = [
    ['Host', host],
    ['X-Sim', String(plan.id)],
  ];
  const options: string[] = [];
  if (plan.close) options.push('close');
  else if (plan.version === 0) options.push('keep-alive');
  if (plan.upgrade) {
    options.push('Upgrade');
    fields.push(['Upgrade', 'websocket']);
  }
  if (plan.id % 3 === 0 && plan.version === 1) {
    options.push('x-hop');
    fields.push(['X-Hop', 'secret']);
  }
  if (options.length > 0) fields.push(['Connection', options.join(', ')]);
  if (plan.extraFieldBytes > 0) fields.push(['X-Extra', 'e'.repeat(plan.extraFieldBytes)]);
  if (plan.faulted === true) fields.push(['X-Fault', 'yes']);
  if (plan.key !== undefined) fields.push(['X-Key', plan.key]);
  if (plan.expectContinue) fields.push(['Expect', '100-continue']);
  if (plan.framing === 'length') fields.push(['Content-Length', String(plan.bytes)]);
  if (plan.framing === 'chunked') fields.push(['Transfer-Encoding', 'chunked']);
  return encodeHead(`${plan.method} ${target} HTTP/1.${plan.version}`, fields);
}

function requestBody(plan: RequestPlan, random: Random): Uint8Array {
  const bytes = payload(plan.id, Direction.REQUEST, 0, plan.bytes);
  if (plan.framing !== 'chunked') return bytes;
  const parts: Uint8Array[] = [];
  for (let at = 0; at < bytes.length; ) {
    const part = bytes.subarray(at, at + random.size(1, plan.chunkBytesMax));
    parts.push(encodeChunk(part, plan.chunkExtensions ? ';name=value;other="a b"' : ''));
    at += part.length;
  }
  parts.push(encodeLastChunk(plan.trailers ? [['X-Trailer', 'end']] : []));
  return Buffer.concat(parts);
}

function malformedRequest(plan: RequestPlan): Uint8Array {
  const start = `POST /r/${plan.id} HTTP/1.1\r\n`;
  const host = `Host: ${plan.host}\r\n`;
  switch (plan.malformed!) {
    case 'bareLf':
      return latin1(`GET /r/${plan.id} HTTP/1.1\nHost: ${plan.host}\n\n`);
    case 'spaceBeforeColon':
      return latin1(`${start}${host}X-Sim : ${plan.id}\r\n\r\n`);
    case 'twoLengths':
      return latin1(`${start}${host}Content-Length: 3\r\nContent-Length: 4\r\n\r\nabcd`);
    case 'lengthAndChunked':
      return latin1(`${start}${host}Content-Length: 3\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n`);
    case 'badChunkSize':
      return latin1(`${start}${host}X-Sim: ${plan.id}\r\nTransfer-Encoding: chunked\r\n\r\n-1\r\nabc\r\n0\r\n\r\n`);
    case 'noHost':
      return latin1(`${start}\r\n`);
    case 'badVersion':
      return latin1(`GET /r/${plan.id} HTTP/3.1\r\n${host}\r\n`);
    case 'garbage':
      return latin1('\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03');
    case 'hugeHead':
      return latin1(`${start}${host}X-Huge: ${'h'.repeat(70_000)}\r\n\r\n`);
  }
}
