// How fast the mesh CA signs: certificates a second on the one core that mints.
//
//   scripts/node bench/mesh/mint.ts [CERTIFICATES]     default 1000
//
// Keys and requests are made before, as nodes do that. Printed: wall time and CPU time of the whole process
// for all certificates, minting thread started before; the goal is 1,000 in under 5 s of one core.

import { mkdtempSync, rmSync } from 'node:fs';
import { tmpdir } from 'node:os';
import { join } from 'node:path';
import { MeshAuthority } from '../../mesh-agent/identity/authority.ts';
import { createSigningRequest } from '../../mesh-agent/identity/csr.ts';
import { generateKey } from '../../mesh-agent/identity/keys.ts';

const TRUST_DOMAIN = 'cluster.local';
const GOAL_MS = 5_000;
const GOAL_CERTIFICATES = 1_000;
/** Requests in flight: as a control plane sees them when many nodes start at once. */
const IN_FLIGHT = 64;

const count = Number(process.argv[2] ?? GOAL_CERTIFICATES);
const directory = mkdtempSync(join(tmpdir(), 'portcullis-mint-'));
const authority = await MeshAuthority.open({ directory, trustDomain: TRUST_DOMAIN, log: () => {} });
try {
  const requests: { identity: string; csr: string }[] = [];
  for (let i = 0; i < count; i++) {
    const identity = `spiffe://${TRUST_DOMAIN}/ns/shop-${i % 20}/sa/workload-${i}`;
    requests.push({ identity, csr: createSigningRequest(identity, await generateKey()) });
  }
  // Starts the thread and compiles its code.
  for (const { csr, identity } of requests.slice(0, 50)) await authority.issue(csr, identity);

  const cpu = process.cpuUsage();
  const startMs = performance.now();
  let next = 0;
  const lane = async (): Promise<void> => {
    while (next < count) {
      const { csr, identity } = requests[next++]!;
      await authority.issue(csr, identity);
    }
  };
  await Promise.all(Array.from({ length: IN_FLIGHT }, lane));
  const wallMs = performance.now() - startMs;
  const { user, system } = process.cpuUsage(cpu);
  const cpuMs = (user + system) / 1000;
  const goalMs = (GOAL_MS * count) / GOAL_CERTIFICATES;
  console.log(`${count} certificates: ${wallMs.toFixed(0)} ms wall, ${cpuMs.toFixed(0)} ms CPU of all threads`);
  console.log(
    `${((count * 1000) / wallMs).toFixed(0)} a second; goal ${goalMs} ms: ${Math.max(wallMs, cpuMs) <= goalMs ? 'met' : 'MISSED'}`,
  );
} finally {
  await authority.close();
  rmSync(directory, { recursive: true, force: true });
}
