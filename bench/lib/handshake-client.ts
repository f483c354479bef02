// Load of handshakes, as a process of its own: `handshake-client.ts PORT PATH CONNECTIONS MS full|resumed`.
//
// Each of CONNECTIONS lanes connects, shakes hands (TLS 1.3, X25519, AES-128-GCM), sends one GET with
// `Connection: close`, reads until the end, and begins again. `resumed` offers the last ticket that the
// lane was given. It is slower than any proxy, which does no harm: what counts is the CPU time of the
// proxy for each handshake. Prints one line of JSON, a HandshakeResult.

import { type ConnectionOptions, connect, createSecureContext, type TLSSocket } from 'node:tls';
import { BROWSER_HEADERS, type LoadFigures, noErrors } from './figures.ts';
import { percentile } from './stats.ts';

/** What the process prints. */
export interface HandshakeResult {
  figures: LoadFigures;
  /** Handshakes of the other kind than asked for, without the first of each lane. */
  otherKind: number;
  /** Handshakes with another version than TLS 1.3. */
  otherVersion: number;
  firstError: string;
}

const ANSWER_TIMEOUT_MS = 5000;

const [portText, path, lanesText, durationText, kind] = process.argv.slice(2);
const resumed = kind === 'resumed';
const options: ConnectionOptions = {
  host: '127.0.0.1',
  port: Number(portText),
  servername: 'localhost',
  rejectUnauthorized: false,
  // One context for all; the group is fixed since a hybrid post-quantum one would burden only those
  // proxies whose OpenSSL knows it.
  secureContext: createSecureContext({
    minVersion: 'TLSv1.3',
    maxVersion: 'TLSv1.3',
    ecdhCurve: 'X25519',
    ciphers: 'TLS_AES_128_GCM_SHA256',
  }),
};
const fields = Object.entries(BROWSER_HEADERS).map(([name, value]) => `${name}: ${value}\r\n`);
const request = `GET ${path} HTTP/1.1\r\nHost: localhost\r\n${fields.join('')}Connection: close\r\n\r\n`;

const errors = noErrors();
const latenciesUs: number[] = [];
let bodyBytes = 0;
let otherKind = 0;
let otherVersion = 0;
let firstError = '';

const startMs = performance.now();
const endMs = startMs + Number(durationText);
await Promise.all(Array.from({ length: Number(lanesText) }, lane));
const durationUs = (performance.now() - startMs) * 1000;
const sorted = Float64Array.from(latenciesUs).sort();
const result: HandshakeResult = {
  figures: {
    requests: sorted.length,
    durationUs,
    bytes: bodyBytes,
    latencyP50Us: percentile(sorted, 50),
    latencyP99Us: percentile(sorted, 99),
    errors,
  },
  otherKind,
  otherVersion,
  firstError,
};
console.log(JSON.stringify(result));

async function lane(): Promise<void> {
  let ticket: Buffer | undefined;
  let first = true;
  while (performance.now() < endMs) {
    const askedMs = performance.now();
    await new Promise<void>((resolve) => {
      const socket: TLSSocket = connect({ ...options, session: resumed ? ticket : undefined });
      // Or the request would wait for the acknowledgement of the handshake.
      socket.setNoDelay(true);
      let connected = false;
      let text = '';
      let failure = '';
      socket.setTimeout(ANSWER_TIMEOUT_MS, () => {
        failure ||= 'timeout';
        errors.timeout++;
        socket.destroy();
      });
      socket.on('session', (session: Buffer) => {
        ticket = session;
      });
      socket.once('secureConnect', () => {
        connected = true;
        if (socket.isSessionReused() !== resumed && !(first && resumed)) otherKind++;
        if (socket.getProtocol() !== 'TLSv1.3') otherVersion++;
        first = false;
        socket.write(request);
      });
      socket.setEncoding('latin1').on('data', (chunk: string) => {
        text += chunk;
      });
      socket.on('error', (error) => {
        if (failure !== '') return;
        failure = error.message;
        if (connected) errors.read++;
        else errors.connect++;
      });
      socket.once('close', () => {
        const head = text.indexOf('\r\n\r\n') + 4;
        if (failure === '' && head < 4) {
          failure = 'the connection ended without an answer';
          errors.read++;
        } else if (failure === '' && !text.startsWith('HTTP/1.1 200')) {
          failure = text.slice(0, 60);
          errors.status++;
        }
        firstError ||= failure;
        if (failure === '') {
          latenciesUs.push((performance.now() - askedMs) * 1000);
          bodyBytes += text.length - head;
        }
        resolve();
      });
    });
  }
}
