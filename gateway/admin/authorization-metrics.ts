// Metrics of authorisation policies of the mesh: what each has refused, and would have refused.

import { policySlotNames } from '../../core/authorization/policy-numbers.ts';
import type { Sample } from '../../core/process/exposition.ts';
import { MetricSection } from '../../core/telemetry/metrics.ts';
import type { MetricDefinition } from './metrics.ts';

const { POLICY_DENIALS, POLICY_TRIALS } = MetricSection;

function byPolicy(totals: Float64Array, section: number): Sample[] {
  return policySlotNames()
    .map(({ slot, name }) => ({ labels: { policy: name }, value: totals[section + slot]! }))
    .filter(({ value }) => value > 0);
}

/** See docs/mesh/authorization.md. */
export const authorizationMetrics: readonly MetricDefinition[] = [
  {
    name: 'portcullis_authorization_denied_total',
    type: 'counter',
    help: 'Requests and TCP connections that a policy of the mesh has refused: one that denies, or each of those that allow when none did.',
    labels: ['policy'],
    collect: ({ totals }) => byPolicy(totals, POLICY_DENIALS),
  },
  {
    name: 'portcullis_authorization_dry_run_denied_total',
    type: 'counter',
    help: 'Requests and TCP connections that were let in, and that a policy with dryRun would have refused.',
    labels: ['policy'],
    collect: ({ totals }) => byPolicy(totals, POLICY_TRIALS),
  },
];
