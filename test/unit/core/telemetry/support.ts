// A LogSource from plain values, and reading back what was put into a ring.

import { RingConsumer } from '../../../../core/telemetry/byte-ring.ts';
import { LogSource } from '../../../../core/telemetry/log-source.ts';

/** Texts of a request as strings (UTF-8) or as raw bytes. */
export type Text = string | Uint8Array;

/** What a test says of an exchange; everything else is as in `exampleSource`. */
export interface SourceTexts {
  method?: Text;
  path?: Text;
  host?: Text;
  userAgent?: Text;
  referer?: Text;
  requestId?: Text;
}

/** The bytes of a text. */
export function bytesOf(text: Text): Uint8Array {
  return typeof text === 'string' ? new TextEncoder().encode(text) : text;
}

/** A complete GET through route "shop rule 0"; `texts` and `fields` replace parts of it. */
export function exampleSource(texts: SourceTexts = {}, fields: Partial<LogSource> = {}): LogSource {
  const source = new LogSource();
  const all: Required<SourceTexts> = {
    method: 'GET',
    path: '/cart?id=7',
    host: 'shop.example.com',
    userAgent: 'curl/8.5.0',
    referer: '',
    requestId: 'a1b2c3',
    ...texts,
  };
  const parts = Object.entries(all).map(([name, text]) => ({ name, bytes: bytesOf(text) }));
  // Bytes between the texts must never be read.
  source.memory = new Uint8Array(64 + parts.reduce((sum, { bytes }) => sum + bytes.length + 8, 0)).fill(0x7e);
  let at = 32;
  for (const { name, bytes } of parts) {
    source.memory.set(bytes, at);
    Object.assign(source, { [`${name}Offset`]: at, [`${name}Length`]: bytes.length });
    at += bytes.length + 8;
  }
  Object.assign(source, {
    client: { peerFamily: 2, peerPort: 41_000, peer0: 0xc0000207 | 0, peer1: 0, peer2: 0, peer3: 0 },
    listener: bytesOf('http'),
    route: bytesOf('shop rule 0'),
    backend: bytesOf('cart'),
    endpoint: bytesOf('10.0.0.1:9001'),
    status: 200,
    attempts: 1,
    epoch: 3,
    bytesReceived: 12,
    bytesSent: 3456,
    wallMs: Date.UTC(2026, 10, 20, 23, 36, 4, 7),
    durationMs: 12.3456,
    connectMs: 1.5,
    upstreamMs: 10.25,
    responseStarted: true,
    responseComplete: true,
    ...fields,
  });
  return source;
}

/** Takes everything out of a ring, as text; bytes become characters one to one. */
export function takeAll(ring: SharedArrayBuffer): string {
  const consumer = new RingConsumer(ring);
  const used = consumer.used();
  let text = '';
  for (let i = 0; i < used; i++) text += String.fromCharCode(consumer.data[consumer.index(i)]);
  consumer.free(used);
  return text;
}
