// The way of a sidecar to the control plane, and to Redis, past the rules that capture its workload.
//
// A sidecar shares the network namespace with its workload, so that its own connections would be captured, too, and
// refused for as long as it does not serve: for ever, after a restart. The packet core marks its sockets, but those of
// Node's TLS cannot be marked. So gRPC connects to a socket in the state directory, and what arrives there goes on over a
// marked one. It is TLS of the two ends, which is none of this module's business. So is what Redis is told.
// Control thread of the proxy. Source: socket(7) (SO_MARK).

import { lookup } from 'node:dns/promises';
import { rmSync } from 'node:fs';
import { createServer, isIP, type Server, Socket } from 'node:net';
import { join } from 'node:path';
import { parseAddress } from '../../config/names.ts';
import type { NamespaceSockets } from '../../core/ffi/netns.ts';
import type { Log } from '../../core/workers/log.ts';
import { OWN_NAMESPACE } from '../capture/capture.ts';
import { CAPTURE_MARK } from '../capture/spec.ts';

/** Longest path of a socket (unix(7)), without the zero at its end. */
const PATH_BYTES_MAX = 107;

/** Name of the socket in the state directory that leads to the control plane. */
const CONTROL_SOCKET = 'control.sock';

/** Name of the one that leads to Redis; not longer. */
export const REDIS_SOCKET = 'redis.sock';

/** Relays connections to the control plane, or to something else that has another socket. */
export class ControlRelay {
  /** Where it listens, as an address of gRPC. */
  readonly target: string;
  private readonly path: string;
  private readonly peer: string;
  private host = '';
  private port = 0;
  private readonly sockets: NamespaceSockets;
  private readonly log: Log;
  private readonly open = new Set<Socket>();
  private server: Server | undefined;
  /** Failures so far: after each it is the turn of another address of the other end, if it has several. */
  private failures = 0;
  private problem = '';

  /** `address`: host and port of the other end, which the log calls `peer`. `sockets` is used and not closed. */
  constructor(
    address: string,
    directory: string,
    sockets: NamespaceSockets,
    log: Log,
    socket = CONTROL_SOCKET,
    peer = 'the control plane',
  ) {
    this.aim(address);
    this.peer = peer;
    this.path = relayPath(directory, socket);
    this.target = `unix:${this.path}`;
    this.sockets = sockets;
    this.log = log;
  }

  /** Where further connections go. */
  aim(address: string): void {
    const { host, port } = parseAddress(address) as { host: string; port: number };
    this.host = host;
    this.port = port;
  }

  /** Begins to listen. Rejects with the system's error. */
  async start(): Promise<void> {
    // What an earlier process has left behind.
    rmSync(this.path, { force: true });
    const server = createServer({ allowHalfOpen: true }, (near) => void this.relay(near));
    this.server = server;
    await new Promise<void>((resolve, reject) => {
      server.on('error', (error) => {
        // Later ones are of connections that cannot be accepted, as without descriptors.
        if (server.listening) this.failed(error.message);
        else reject(error);
      });
      server.listen(this.path, resolve);
    });
  }

  /** Ends, with all connections. */
  close(): void {
    this.server?.close();
    for (const socket of this.open) socket.destroy();
  }

  private async relay(near: Socket): Promise<void> {
    // It may fail while the way on is looked for, which would end the process.
    near.on('error', () => {});
    const far = await this.dial();
    if (far === null || near.destroyed) {
      near.destroy();
      far?.destroy();
      return;
    }
    for (const [from, to] of [
      [near, far],
      [far, near],
    ] as const) {
      this.open.add(from);
      from.pipe(to);
      from.on('error', (error) => {
        if (from === far) this.failed(error.message);
      });
      from.on('close', () => {
        this.open.delete(from);
        to.destroy();
      });
    }
    far.once('data', () => {
      this.problem = '';
    });
  }

  /** A marked socket that is connecting; null: there is none. */
  private async dial(): Promise<Socket | null> {
    try {
      const addresses = isIP(this.host) > 0 ? [{ address: this.host }] : await lookup(this.host, { all: true });
      const { address } = addresses[this.failures % addresses.length]!;
      const request = { kind: 'dial', host: address, port: this.port, mark: CAPTURE_MARK } as const;
      const dialled = await this.sockets.open(OWN_NAMESPACE, request);
      if (dialled.ok) return new Socket({ fd: dialled.fds[0]!, allowHalfOpen: true });
      this.failed(dialled.message);
    } catch (error) {
      this.failed((error as Error).message);
    }
    return null;
  }

  /** Who connects here knows only that the socket here was closed. Said once for each cause in a row. */
  private failed(problem: string): void {
    this.failures++;
    if (problem === this.problem) return;
    this.problem = problem;
    this.log('warn', `${this.peer} cannot be reached`, { address: `${this.host}:${this.port}`, problem });
  }
}

/** Where a relay of a state directory listens. */
export function relayPath(directory: string, socket = CONTROL_SOCKET): string {
  return join(directory, socket);
}

/** Why there can be no relay in a state directory; undefined: there can. */
export function relayProblem(directory: string): string | undefined {
  const bytes = Buffer.byteLength(relayPath(directory));
  return bytes <= PATH_BYTES_MAX ? undefined : `is ${bytes - PATH_BYTES_MAX} bytes too long for a socket in it`;
}
