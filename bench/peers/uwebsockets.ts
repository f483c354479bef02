// uWebSockets.js as a peer, where it is installed: its server in front of node:http's keep-alive
// agent, which is how a Node developer builds a proxy with it (it has no client of its own).

import { createRequire } from 'node:module';
import { join } from 'node:path';
import { BenchProcess } from '../lib/processes.ts';
import { NO_FEATURES, noReload, type Peer, type ProxyOptions, type StartedProxy } from './peer.ts';

/** A proxy made of uWebSockets.js and node:http. */
export const uwebsockets: Peer = {
  name: 'uwebsockets',
  features: NO_FEATURES,
  version() {
    try {
      const manifest = createRequire(import.meta.url)('uWebSockets.js/package.json') as { version: string };
      return `uWebSockets.js ${manifest.version} with the node:http agent`;
    } catch {
      return null;
    }
  },
  async start(options: ProxyOptions): Promise<StartedProxy> {
    const child = new BenchProcess({
      label: 'uwebsockets',
      command: process.execPath,
      args: [join(import.meta.dirname, 'uwebsockets-server.ts'), String(options.port), String(options.backendPort)],
      dir: options.dir,
      core: options.core,
    });
    return { process: child, reload: noReload };
  },
};
