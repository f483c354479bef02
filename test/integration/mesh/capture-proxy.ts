// A process that captures a namespace and answers for the proxy, to be killed by tests.
//
//   node capture-proxy.ts NAMESPACE_PATH open|closed|rules-exist
//
// Says `ready` when everything stands.

import { createServer } from 'node:net';
import { NamespaceSockets } from '../../../core/ffi/netns.ts';
import { Captures } from '../../../mesh-agent/capture/capture.ts';
import { answerHttp, specOf } from './capture-support.ts';

const [path, mode] = process.argv.slice(2) as [string, string];
const sockets = new NamespaceSockets();
for (const port of [15001, 15006]) {
  const opened = await sockets.open(path, { kind: 'listen', host: '0.0.0.0', port });
  if (!opened.ok) throw new Error(opened.message);
  createServer((socket) => answerHttp(socket, 'proxy')).listen({ fd: opened.fds[0]! });
}
if (mode !== 'rules-exist') {
  const installed = await new Captures({ sockets }).install(path, specOf({ failOpen: mode === 'open' }));
  if (!installed.ok) throw new Error(installed.message);
}
process.stdout.write('ready\n');
