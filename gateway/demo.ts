// The built-in demo: what `portcullis run` does without a configuration file.
//
// Two small upstreams on free loopback ports of this process, and a configuration that shows host
// routing, path routing and weighted round robin. It goes through the same loader as any file.
// Runs on the control thread.

import type { Server } from 'node:http';
import type { AddressInfo } from 'node:net';
import { createServer } from '../core/process/node-http.ts';

/** Name under which errors and `/config` speak of the demo. */
export const DEMO_NAME = 'built-in demo';

/** The configuration. BLUE and GREEN are the upstreams' ports; PORT and ADMIN_PORT the user may set. */
export const DEMO_CONFIG = `
admin: {address: "127.0.0.1:\${ADMIN_PORT:-9901}"}
listeners:
  - {name: http, address: "127.0.0.1:\${PORT:-8080}"}
routes:
  - name: green-host
    hostnames: [green.example]
    rules:
      - backendRefs: [{name: green}]
  - name: any-host
    rules:
      - matches: [{path: {type: PathPrefix, value: /green}}]
        backendRefs: [{name: green}]
      - backendRefs:
          - {name: blue, weight: 3}
          - {name: green, weight: 1}
backends:
  - {name: blue, endpoints: ["127.0.0.1:\${BLUE}"]}
  - {name: green, endpoints: ["127.0.0.1:\${GREEN}"]}
`;

/** The running upstreams. */
export interface DemoUpstreams {
  /** Variables for the configuration, on top of the environment. */
  variables: Record<string, string>;
  close(): void;
}

/** Starts both upstreams. */
export async function startDemoUpstreams(): Promise<DemoUpstreams> {
  const [blue, green] = await Promise.all([startUpstream('blue'), startUpstream('green')]);
  return {
    variables: { BLUE: portOf(blue), GREEN: portOf(green) },
    close: () => {
      for (const server of [blue, green]) {
        server.close();
        server.closeAllConnections();
      }
    },
  };
}

/** What the demo prints once it serves: what runs, and three commands to try. */
export function demoBanner(address: string, adminAddress: string | undefined): string {
  const url = `http://${address}`;
  return `
Portcullis runs its built-in demo on ${url}: two small upstreams, "blue" and "green".
${adminAddress === undefined ? '' : `Admin port: http://${adminAddress}/ (metrics, health, configuration).\n`}
Try:
  curl ${url}/                            # weighted: three of four answers come from blue
  curl ${url}/green/hello                 # routed by path
  curl -H 'Host: green.example' ${url}/   # routed by host

Your own configuration: ./portcullis run --config FILE. Ctrl-C stops.

`;
}

function startUpstream(colour: string): Promise<Server> {
  const server = createServer((request, response) => {
    response.setHeader('content-type', 'text/plain');
    response.end(`${colour} answers ${request.method} ${request.url} for ${request.headers.host ?? '(no host)'}\n`);
    request.resume();
  });
  // Longer than the gateway keeps its connections, so that the gateway is the one who closes.
  server.keepAliveTimeout = 120_000;
  return new Promise((resolve, reject) => {
    server.once('error', reject);
    server.listen(0, '127.0.0.1', () => resolve(server));
  });
}

function portOf(server: Server): string {
  return String((server.address() as AddressInfo).port);
}
