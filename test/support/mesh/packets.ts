// What went over a wire: tcpdump's file, taken apart into the bytes of each direction of each TCP connection.
//
// Source: pcap savefile format (pcap-savefile(5)), RFC 9293 §3.1, RFC 791 §3.1, RFC 8200 §3; RFC 8446 §4.1.3 and §5.1.

import { readFileSync } from 'node:fs';
import { Running } from '../../integration/support.ts';
import type { TestNamespace } from '../netns/network.ts';

/** One direction of a TCP connection. */
export interface Flow {
  from: { address: string; port: number };
  to: { address: string; port: number };
  bytes: Buffer;
  /** Whether everything from the first byte on was captured. */
  whole: boolean;
}

/** What was captured. */
export interface Captured {
  flows: Flow[];
  /** All packets as they are. */
  file: Buffer;
}

/** A capture that runs. */
export class Capture {
  private readonly tcpdump: Running;
  private readonly file: string;

  private constructor(tcpdump: Running, file: string) {
    this.tcpdump = tcpdump;
    this.file = file;
  }

  /** Begins; all TCP packets of the interface, whole. Resolves when nothing is missed any more. */
  static async start(at: TestNamespace, link: string, file: string): Promise<Capture> {
    const args = ['-i', link, '-s', '0', '-U', '--immediate-mode', '-B', '16384', '-Z', 'root', '-w', file, 'tcp'];
    const capture = new Capture(new Running(at.spawn('tcpdump', args)), file);
    await capture.tcpdump.log(/listening on /);
    return capture;
  }

  /** Ends it once it has written everything that has passed. Throws when packets were lost. */
  async stop(): Promise<Captured> {
    for (let asked = 1, behind = true; behind; asked++) {
      this.tcpdump.kill('SIGUSR1');
      const [, captured, received] = await this.tcpdump.log(/(\d+) packets? captured, (\d+) packets? received/, asked);
      behind = Number(captured) < Number(received);
    }
    this.tcpdump.kill('SIGTERM');
    const { stderr } = await this.tcpdump.finished;
    if (!/^0 packets dropped by kernel$/m.test(stderr)) throw new Error(stderr);
    const file = readFileSync(this.file);
    return { flows: flowsOf(file), file };
  }
}

/** A record of TLS. */
export interface TlsRecord {
  /** 20 change cipher spec, 21 alert, 22 handshake, 23 application data. */
  type: number;
  version: number;
  payload: Buffer;
}

/** Records of a flow; null: it is something else than TLS records from its first byte to its last complete one. */
export function tlsRecords({ bytes }: Flow): TlsRecord[] | null {
  const records: TlsRecord[] = [];
  for (let at = 0; at + 5 <= bytes.length; ) {
    const type = bytes[at]!;
    const version = bytes.readUInt16BE(at + 1);
    const length = bytes.readUInt16BE(at + 3);
    if (type < 20 || type > 23 || (version !== 0x0301 && version !== 0x0303) || length > 16_640) return null;
    records.push({ type, version, payload: bytes.subarray(at + 5, at + 5 + length) });
    at += 5 + length;
  }
  return records;
}

/** Version that a ServerHello chose (0x0304: TLS 1.3), by its extension; undefined: there is none in these records. */
export function chosenVersion(records: readonly TlsRecord[]): number | undefined {
  const hello = records.find(({ type, payload }) => type === 22 && payload[0] === 2)?.payload;
  if (hello === undefined) return undefined;
  // Type, length, version, random, session id, cipher suite, compression.
  let at = 4 + 2 + 32;
  at += 1 + hello[at]! + 2 + 1;
  const end = at + 2 + hello.readUInt16BE(at);
  for (at += 2; at < end; at += 4 + hello.readUInt16BE(at + 2)) {
    if (hello.readUInt16BE(at) === 43) return hello.readUInt16BE(at + 4);
  }
  return hello.readUInt16BE(4);
}

interface Segments {
  flow: Flow;
  /** Sequence number of the first byte; undefined: the begin was not seen. */
  first: number | undefined;
  parts: { at: number; bytes: Buffer }[];
}

/** Connections of a savefile of Ethernet packets. */
function flowsOf(file: Buffer): Flow[] {
  const little = file.readUInt32LE(0) === 0xa1b2c3d4;
  if (!little && file.readUInt32BE(0) !== 0xa1b2c3d4) throw new Error('not a savefile with microseconds');
  const word = (at: number): number => (little ? file.readUInt32LE(at) : file.readUInt32BE(at));
  if ((word(20) & 0xffff) !== 1) throw new Error(`link type ${word(20)} instead of Ethernet`);
  const all = new Map<string, Segments>();
  for (let at = 24; at + 16 <= file.length; ) {
    const length = word(at + 8);
    if (length !== word(at + 12)) throw new Error('a packet was captured in part');
    readPacket(file.subarray(at + 16, at + 16 + length), all);
    at += 16 + length;
  }
  return [...all.values()].map(assemble);
}

function readPacket(packet: Buffer, all: Map<string, Segments>): void {
  const ip = packet.subarray(14);
  const etherType = packet.readUInt16BE(12);
  if (etherType === 0x0800 && ip[9] === 6) {
    const tcp = ip.subarray((ip[0]! & 15) * 4, ip.readUInt16BE(2));
    readSegment([...ip.subarray(12, 16)].join('.'), [...ip.subarray(16, 20)].join('.'), tcp, all);
  } else if (etherType === 0x86dd && ip[6] === 6) {
    const tcp = ip.subarray(40, 40 + ip.readUInt16BE(4));
    readSegment(ip.toString('hex', 8, 24), ip.toString('hex', 24, 40), tcp, all);
  } else throw new Error(`a packet that is not TCP: ethertype ${etherType}`);
}

const SYN = 2;

function readSegment(from: string, to: string, tcp: Buffer, all: Map<string, Segments>): void {
  const ports = [tcp.readUInt16BE(0), tcp.readUInt16BE(2)] as const;
  const sequence = tcp.readUInt32BE(4);
  const key = `${from} ${ports[0]} ${to} ${ports[1]}`;
  let segments = all.get(key);
  // A port that is used again begins a connection of its own.
  if (segments === undefined || (tcp[13]! & SYN && segments.first !== (sequence + 1) >>> 0)) {
    if (segments !== undefined) all.set(`${key} ${all.size}`, segments);
    const flow = {
      from: { address: from, port: ports[0] },
      to: { address: to, port: ports[1] },
      ...{ bytes: Buffer.alloc(0), whole: false },
    };
    segments = { flow, first: tcp[13]! & SYN ? (sequence + 1) >>> 0 : undefined, parts: [] };
    all.set(key, segments);
  }
  const bytes = tcp.subarray((tcp[12]! >> 4) * 4);
  if (bytes.length > 0) segments.parts.push({ at: sequence, bytes });
}

/** In order, without what was sent again, up to the first gap. */
function assemble({ flow, first, parts }: Segments): Flow {
  if (first === undefined) return { ...flow, bytes: Buffer.concat(parts.map(({ bytes }) => bytes)) };
  const sorted = parts.map(({ at, bytes }) => ({ at: (at - first) >>> 0, bytes })).sort((a, b) => a.at - b.at);
  const pieces: Buffer[] = [];
  let length = 0;
  for (const { at, bytes } of sorted) {
    if (at > length) return { ...flow, bytes: Buffer.concat(pieces) };
    if (at + bytes.length <= length) continue;
    pieces.push(bytes.subarray(length - at));
    length = at + bytes.length;
  }
  return { ...flow, bytes: Buffer.concat(pieces), whole: true };
}
