// The roots that a node proxy is installed with: a file that cannot be used is refused by its name.

import assert from 'node:assert/strict';
import { writeFileSync } from 'node:fs';
import { join } from 'node:path';
import { test } from 'node:test';
import { IdentityError } from '../../../../mesh-agent/identity/errors.ts';
import { NodeAgent } from '../../../../mesh-agent/node/node-agent.ts';
import { temporaryDirectory } from '../commands/support.ts';
import { noLog } from '../control/support.ts';
import { nodeConfig } from './support.ts';

for (const [what, text, cause] of [
  ['without a certificate', '# roots of the mesh\n', 'it has 0 roots'],
  ['with a certificate that is none', '-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n', ''],
] as const) {
  test(`a file of roots is refused with its key and name: ${what}`, async (t) => {
    const base = temporaryDirectory(t);
    const rootsFile = join(base, 'roots.pem');
    writeFileSync(rootsFile, text);
    const controlPlane = { ...nodeConfig().controlPlane, rootsFile };
    const opening = NodeAgent.open(nodeConfig({ controlPlane, stateDirectory: join(base, 'state') }), noLog);
    await assert.rejects(opening, (error) => {
      assert.ok(error instanceof IdentityError);
      assert.equal(error.code, 'bundle-malformed');
      const begin = `controlPlane.roots (${rootsFile}): the trust bundle is refused: ${cause}`;
      assert.ok(error.message.startsWith(begin), error.message);
      assert.match(error.advice, /portcullis mesh roots/);
      return true;
    });
  });
}
