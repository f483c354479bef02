// The C forwarder that parses nothing: what the kernel's TCP path alone costs on this machine.
// Not a proxy; it takes part only where requests and responses are of the plainest kind.

import { buildCProgram, cProgramsDir } from '../lib/c-programs.ts';
import { BenchProcess } from '../lib/processes.ts';
import { NO_FEATURES, noReload, type Peer, type ProxyOptions, type StartedProxy } from './peer.ts';

/** limit.c. */
export const limit: Peer = {
  name: 'limit',
  features: { ...NO_FEATURES, tcp: true },
  version() {
    return cProgramsDir() === null ? null : 'C forwarder that parses nothing (limit.c)';
  },
  async start(options: ProxyOptions): Promise<StartedProxy> {
    const child = new BenchProcess({
      label: 'limit',
      command: await buildCProgram('limit'),
      args: [String(options.port), String(options.backendPort)],
      dir: options.dir,
      core: options.core,
    });
    return { process: child, reload: noReload };
  },
};
