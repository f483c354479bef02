// Words for outcomes, the same in the access log, in metric labels and in flight records.
// Pure functions over the tables of exchange/reasons.ts and http1/errors.ts; not for the packet path.

import { policySentence, policyWord } from '../authorization/policy-numbers.ts';
import {
  DETAIL_LIMIT,
  DETAIL_PARSE,
  DETAIL_POLICY,
  DETAIL_TLS,
  Detail,
  detailSentence,
  reasonText,
} from '../exchange/reasons.ts';
import { parseErrorName, parseErrorSentence } from '../http1/errors.ts';
import { limitName } from '../limits/limit-names.ts';
import { type TlsFailure, tlsFailureName, tlsFailureSentence, tlsFailures } from '../tls/errors.ts';

const names: string[] = [];
for (const [name, detail] of Object.entries(Detail)) names[detail] = detail === Detail.NONE ? '' : name.toLowerCase();

/** Number of ordinary details: all are below it. */
export const DETAIL_COUNT = names.length;

/** Word for a parse error code, such as `bare_lf`; `parse_error_99` for a code without a name. */
export function parseErrorWord(code: number): string {
  const name = parseErrorName(code);
  return name === 'UNKNOWN' ? `parse_error_${code}` : name.toLowerCase();
}

/** Word for a detail: `upstream_fin`, for parse errors `bare_lf`; empty for none. */
export function detailName(detail: number): string {
  if (detail >= DETAIL_POLICY) return policyWord(detail - DETAIL_POLICY);
  if (detail >= DETAIL_LIMIT) return `limit_${limitName(detail - DETAIL_LIMIT)}`;
  if (detail >= DETAIL_TLS) return `tls_${tlsWord(detail - DETAIL_TLS)}`;
  if (detail >= DETAIL_PARSE) return parseErrorWord(detail - DETAIL_PARSE);
  return names[detail] ?? `detail_${detail}`;
}

/** One plain sentence for a detail, parse errors included; empty for none. */
export function detailText(detail: number): string {
  if (detail >= DETAIL_POLICY) return policySentence(detail - DETAIL_POLICY);
  if (detail >= DETAIL_LIMIT) return `The limit is "${limitName(detail - DETAIL_LIMIT)}".`;
  if (detail >= DETAIL_TLS) return `TLS: ${tlsSentence(detail - DETAIL_TLS)}.`;
  return detail >= DETAIL_PARSE ? parseErrorSentence(detail - DETAIL_PARSE) : detailSentence(detail);
}

/** Word for a TLS failure (core/tls/errors.ts), such as `unknown_ca`. */
export function tlsWord(failure: number): string {
  return failure < tlsFailures.length ? tlsFailureName(failure as TlsFailure) : `failure_${failure}`;
}

function tlsSentence(failure: number): string {
  return failure < tlsFailures.length ? tlsFailureSentence(failure as TlsFailure) : `failure ${failure}`;
}

/** Flag of a reason (`NR`); empty for none. */
export function reasonFlag(reason: number): string {
  return reason === 0 ? '' : reasonText(reason).flag;
}
