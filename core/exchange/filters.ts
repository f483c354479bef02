// The filters of rules and backend references, prepared for the packet path.
// Made once per snapshot and policy, immutable afterwards. Hot module: no allocation.

import type { HeadFilterSettings, RewriteSettings, RuleFilterSettings } from '../workers/filter-settings.ts';
import { Cors } from './cors.ts';
import { DirectResponse } from './direct-response.ts';
import type { Exchange } from './exchange.ts';
import { Fault } from './faults.ts';
import { HeadEdits } from './head-edits.ts';
import { PathRewrite } from './path-rewrite.ts';
import { Redirect } from './redirects.ts';

const encoder = new TextEncoder();

/** URLRewrite. */
export class Rewrite {
  /** Host that goes upstream; null: the client's. */
  readonly hostname: Uint8Array | null;
  readonly path: PathRewrite | null;

  constructor({ hostname, path }: RewriteSettings) {
    this.hostname = hostname === '' ? null : encoder.encode(hostname);
    this.path = path === null ? null : new PathRewrite(path);
  }
}

/** Changes to the heads of a request and of its response. */
export class HeadFilters {
  readonly request: HeadEdits | null;
  readonly response: HeadEdits | null;
  readonly rewrite: Rewrite | null;
  /** The request head changes on its way upstream. */
  readonly changesRequest: boolean;

  constructor({ requestHeaders, responseHeaders, rewrite }: HeadFilterSettings) {
    this.request = requestHeaders === null ? null : new HeadEdits(requestHeaders);
    this.response = responseHeaders === null ? null : new HeadEdits(responseHeaders);
    this.rewrite = rewrite === null ? null : new Rewrite(rewrite);
    this.changesRequest = this.request !== null || this.rewrite !== null;
  }
}

/** Filters of a rule. */
export class RuleFilters extends HeadFilters {
  readonly redirect: Redirect | null;
  readonly direct: DirectResponse | null;
  readonly cors: Cors | null;
  readonly fault: Fault | null;

  constructor(settings: RuleFilterSettings) {
    super(settings);
    this.redirect = settings.redirect === null ? null : new Redirect(settings.redirect);
    this.direct = settings.direct === null ? null : new DirectResponse(settings.direct);
    this.cors = settings.cors === null ? null : new Cors(settings.cors);
    this.fault = settings.fault === null ? null : new Fault(settings.fault);
  }
}

/** The changes to heads for an exchange whose rule and backend are known: the reference's, which hold the rule's; or null. */
export function headFiltersOf(exchange: Exchange): HeadFilters | null {
  const { policy, refPolicy } = exchange;
  if (refPolicy !== null && refPolicy.filters !== null) return refPolicy.filters;
  return policy === null ? null : policy.filters;
}
