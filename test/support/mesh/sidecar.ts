// The configuration of a sidecar, as somebody would write it who adds one to a mesh of tests.

import { mkdirSync, writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { JoinTokens } from '../../../mesh-agent/identity/join-tokens.ts';
import type { TestMesh } from './mesh.ts';

const TRUST_DOMAIN = 'cluster.local';
const TOKEN_LIFETIME_MS = 600_000;

/**
 * Writes configuration, join token and roots for the sidecar of a workload such as `web-0`, whose service account is
 * `web`, in namespace `shop`. `more`: further lines of the configuration. Resolves to the configuration's path.
 */
export async function writeSidecar(mesh: TestMesh, workload: string, more = ''): Promise<string> {
  const directory = join(mesh.directory, 'sidecar');
  mkdirSync(directory);
  const account = workload.replace(/-\d+$/, '');
  const tokens = new JoinTokens(join(mesh.directory, 'state', 'join-tokens'), TRUST_DOMAIN);
  const serviceAccounts = [{ namespace: 'shop', name: account }];
  const token = await tokens.create({ serviceAccounts, expiresMs: Date.now() + TOKEN_LIFETIME_MS, uses: 1 });
  writeFileSync(join(directory, 'token'), token, { mode: 0o600 });
  writeFileSync(join(directory, 'roots.pem'), await mesh.command('roots', '--admin', mesh.controlAdmin));
  const file = join(directory, 'sidecar.yaml');
  writeFileSync(
    file,
    `trustDomain: ${TRUST_DOMAIN}
sidecar: {namespace: shop, name: ${workload}, serviceAccount: ${account}}
controlPlane: {address: "${mesh.controlAddress}:15012", roots: roots.pem}
joinToken: {file: token}
stateDirectory: state
workers: 1
${more}`,
  );
  return file;
}
