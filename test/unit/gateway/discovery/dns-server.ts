// A small DNS server on loopback with changeable records.

import { createSocket, type Socket } from 'node:dgram';
import type { AddressInfo } from 'node:net';
import { isIP } from 'node:net';
import type { TestContext } from 'node:test';

const TYPES: Record<number, 'A' | 'AAAA' | 'SRV'> = { 1: 'A', 28: 'AAAA', 33: 'SRV' };
const SERVFAIL = 2;
const NXDOMAIN = 3;

/** One SRV record. */
export interface ServiceRecord {
  priority: number;
  weight: number;
  port: number;
  target: string;
}

/** What is known of a name; `fail` answers the questions of these types with SERVFAIL. */
export interface Zone {
  addresses?: string[];
  services?: ServiceRecord[];
  /** Seconds. */
  ttl?: number;
  fail?: ('A' | 'AAAA' | 'SRV')[];
}

export class DnsServer {
  /** By lower-case name without a dot at its end; others do not exist. */
  readonly zones = new Map<string, Zone>();
  /** `TYPE name` of every question, in order. */
  readonly questions: string[] = [];
  private readonly socket: Socket;

  constructor(socket: Socket) {
    this.socket = socket;
    socket.on('message', (message, from) => socket.send(this.answer(message), from.port, from.address));
  }

  /** `ip:port`, as the configuration wants it. */
  get address(): string {
    return `127.0.0.1:${(this.socket.address() as AddressInfo).port}`;
  }

  private answer(message: Buffer): Buffer {
    const labels: string[] = [];
    let at = 12;
    while (message[at] !== 0) {
      labels.push(message.toString('latin1', at + 1, at + 1 + message[at]!));
      at += message[at]! + 1;
    }
    const typeNumber = message.readUInt16BE(at + 1);
    const type = TYPES[typeNumber];
    const name = labels.join('.').toLowerCase();
    this.questions.push(`${type} ${name}`);
    const zone = this.zones.get(name);
    const records = zone === undefined || type === undefined ? [] : dataOf(zone, type);
    const code = zone === undefined ? NXDOMAIN : zone.fail?.includes(type!) ? SERVFAIL : 0;
    const answers = code === 0 ? records.map((data) => record(typeNumber, zone!.ttl ?? 60, data)) : [];
    const head = Buffer.from([message[0]!, message[1]!, 0x81, 0x80 | code, 0, 1, 0, answers.length, 0, 0, 0, 0]);
    return Buffer.concat([head, message.subarray(12, at + 5), ...answers]);
  }
}

/** A server on a free port, closed with the test. */
export async function startDnsServer(t: TestContext): Promise<DnsServer> {
  const socket = createSocket('udp4');
  await new Promise<void>((resolve) => socket.bind(0, '127.0.0.1', resolve));
  t.after(() => socket.close());
  return new DnsServer(socket);
}

function dataOf({ addresses = [], services = [] }: Zone, type: 'A' | 'AAAA' | 'SRV'): Buffer[] {
  switch (type) {
    case 'A':
      return addresses
        .filter((address) => isIP(address) === 4)
        .map((address) => Buffer.from(address.split('.').map(Number)));
    case 'AAAA':
      return addresses.filter((address) => isIP(address) === 6).map(ipv6Bytes);
    case 'SRV':
      return services.map(({ priority, weight, port, target }) => {
        const numbers = Buffer.alloc(6);
        numbers.writeUInt16BE(priority, 0);
        numbers.writeUInt16BE(weight, 2);
        numbers.writeUInt16BE(port, 4);
        const labels = target.split('.').map((label) => Buffer.concat([Buffer.of(label.length), Buffer.from(label)]));
        return Buffer.concat([numbers, ...labels, Buffer.of(0)]);
      });
  }
}

/** Bytes of an address without `::`, or of `::` and one last group. */
function ipv6Bytes(address: string): Buffer {
  const bytes = Buffer.alloc(16);
  const groups = address.startsWith('::')
    ? [...Array.from({ length: 7 }, () => '0'), address.slice(2)]
    : address.split(':');
  groups.forEach((group, index) => {
    bytes.writeUInt16BE(Number.parseInt(group, 16), index * 2);
  });
  return bytes;
}

function record(type: number, ttl: number, data: Buffer): Buffer {
  const head = Buffer.alloc(12);
  head.writeUInt16BE(0xc00c, 0);
  head.writeUInt16BE(type, 2);
  head.writeUInt16BE(1, 4);
  head.writeUInt32BE(ttl, 6);
  head.writeUInt16BE(data.length, 10);
  return Buffer.concat([head, data]);
}
