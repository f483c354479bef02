// The name server of a chaos run: some backends are known by A records of one name, others by SRV records of another.

import { createSocket, type Socket } from 'node:dgram';
import { DnsServer } from '../unit/gateway/discovery/dns-server.ts';
import type { Backend } from './processes.ts';

/** The name whose A records are addresses of backends; their port is the endpoint's. */
export const addressName = 'app.test';
/** The name whose SRV records are backends. */
export const serviceName = '_http._tcp.app.test';
const targetName = 'host.test';

/** Loopback addresses where nobody listens. */
export const deadHost = '127.0.0.99';

/** How the server answers. */
export type Answering = 'well' | 'servfail' | 'nxdomain' | 'silence';

export class ChaosNames {
  private readonly socket: Socket;
  private readonly server: DnsServer;
  private answering: Answering = 'well';
  private byAddress: readonly Backend[] = [];
  private byService: readonly Backend[] = [];
  private readonly missing = new Set<Backend>();
  private dead = false;

  private constructor(socket: Socket) {
    this.socket = socket;
    this.server = new DnsServer(socket);
    const send = socket.send.bind(socket) as (...args: unknown[]) => void;
    socket.send = (...args: unknown[]) => {
      if (this.answering !== 'silence') send(...args);
    };
  }

  /** A server on a free port, which knows these backends. */
  static async start(byAddress: readonly Backend[], byService: readonly Backend[]): Promise<ChaosNames> {
    const socket = createSocket('udp4');
    await new Promise<void>((resolve) => socket.bind(0, '127.0.0.1', resolve));
    const names = new ChaosNames(socket);
    names.byAddress = byAddress;
    names.byService = byService;
    names.publish();
    return names;
  }

  /** `ip:port` of the server. */
  get address(): string {
    return this.server.address;
  }

  /** Questions that have come so far. */
  get questions(): number {
    return this.server.questions.length;
  }

  /** From now on it answers like this. */
  answer(answering: Answering): void {
    this.answering = answering;
    this.publish();
  }

  /** Takes the records of a backend away, or gives them back. */
  list(backend: Backend, listed: boolean): void {
    if (listed) this.missing.delete(backend);
    else this.missing.add(backend);
    this.publish();
  }

  /** Adds records of a server that does not exist, or takes them away. */
  listDead(listed: boolean): void {
    this.dead = listed;
    this.publish();
  }

  /** A backend has another port. */
  publish(): void {
    const { zones } = this.server;
    zones.clear();
    if (this.answering === 'nxdomain') return;
    const fail: ('A' | 'AAAA' | 'SRV')[] = this.answering === 'servfail' ? ['A', 'AAAA', 'SRV'] : [];
    const listed = (backends: readonly Backend[]): Backend[] => backends.filter((one) => !this.missing.has(one));
    const addresses = listed(this.byAddress).map(({ host }) => host);
    const services = listed(this.byService).map(({ port }) => ({ priority: 1, weight: 1, port, target: targetName }));
    if (this.dead) addresses.push(deadHost);
    zones.set(addressName, { addresses, ttl: 0, fail });
    zones.set(serviceName, { services, fail });
    zones.set(targetName, { addresses: ['127.0.0.1'], ttl: 0, fail });
  }

  close(): void {
    this.socket.close();
  }
}
