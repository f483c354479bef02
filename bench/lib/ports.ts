// Free TCP ports on loopback, chosen at run time.
//
// A port that the kernel hands out for port 0 lies in the range that outgoing connections draw
// from, so a connection of another proxy under test could take it before its owner listens.
// Ports below that range are therefore tried first.

import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';

const ATTEMPTS_MAX = 200;
const PORT_MIN = 10_000;
const handedOut = new Set<number>();

/** A port of 127.0.0.1 on which nothing listens, never handed out twice. Throws when none is found. */
export async function freePort(): Promise<number> {
  const portMax = ephemeralPortMin() - 1;
  for (let attempt = 0; attempt < ATTEMPTS_MAX && portMax > PORT_MIN; attempt++) {
    const port = PORT_MIN + Math.floor(Math.random() * (portMax - PORT_MIN));
    if (!handedOut.has(port) && (await listenOnce(port)) === port) {
      handedOut.add(port);
      return port;
    }
  }
  for (let attempt = 0; attempt < ATTEMPTS_MAX; attempt++) {
    const port = await listenOnce(0);
    if (port > 0 && !handedOut.has(port)) {
      handedOut.add(port);
      return port;
    }
  }
  throw new Error('no free TCP port was found on 127.0.0.1');
}

/** First port of the range that outgoing connections use. */
function ephemeralPortMin(): number {
  try {
    return Number(readFileSync('/proc/sys/net/ipv4/ip_local_port_range', 'utf8').trim().split(/\s+/)[0]);
  } catch {
    return 32_768;
  }
}

/** Listens on `port` (0: any) and closes again; the port that was bound, or 0 if it is taken. */
function listenOnce(port: number): Promise<number> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(0));
    server.listen({ host: '127.0.0.1', port, exclusive: true }, () => {
      const address = server.address();
      const bound = typeof address === 'object' && address !== null ? address.port : 0;
      server.close(() => resolve(bound));
    });
  });
}
