// Ports for servers that go away and come back on the same port.
//
// The system gives ports of its ephemeral range to outgoing connections: one that is free while its server is
// down would be taken now and then, or even be connected to itself. So these are from below that range.

import { readFileSync } from 'node:fs';
import { createServer } from 'node:net';

/** Lowest port that is tried. */
const PORT_MIN = 10_000;

/** Ports that are tried before it is given up. */
const TRIES = 200;

/** A port that is free on all addresses, and that no outgoing connection gets. Throws when none is found. */
export async function lastingPort(): Promise<number> {
  const [ephemeralMin] = readFileSync('/proc/sys/net/ipv4/ip_local_port_range', 'latin1').trim().split(/\s+/);
  const count = Number(ephemeralMin) - PORT_MIN;
  if (count <= 0) throw new Error(`no ports between ${PORT_MIN} and the ephemeral ones from ${ephemeralMin}`);
  for (let tries = 0; tries < TRIES; tries++) {
    const port = PORT_MIN + Math.floor(Math.random() * count);
    if (await isFree(port)) return port;
  }
  throw new Error(`no free port found in ${TRIES} tries`);
}

function isFree(port: number): Promise<boolean> {
  return new Promise((resolve) => {
    const server = createServer();
    server.once('error', () => resolve(false));
    server.listen(port, '0.0.0.0', () => server.close(() => resolve(true)));
  });
}
