// Access log formats: the field names, the template syntax, and compiling a format into parts.
//
// Every format, JSON included, becomes the same thing: literal bytes with fields between them, so
// that writing a line (access-log.ts) is one loop without decisions about the format.
// Runs on the control thread (validation) and once per snapshot in each worker (compiling).
// Spec: Common Log Format as in Apache's and nginx's "combined"; JSON is RFC 8259.

import { type FixedText, fixedText } from './log-bytes.ts';

/**
 * Names that a template may use as %{name}, and the keys of a JSON line, in that order. Those of a mesh are in the lines
 * of node proxies only.
 */
export const accessLogFields: readonly string[] = [
  'time',
  'method',
  'path',
  'host',
  'protocol',
  'status',
  'reason',
  'detail',
  'bytesReceived',
  'bytesSent',
  'durationMs',
  'upstreamMs',
  'clientAddress',
  'clientPort',
  'requestId',
  'userAgent',
  'referer',
  'route',
  'backend',
  'endpoint',
  'listener',
  'attempts',
  'epoch',
  'worker',
  'tlsVersion',
  'serverName',
  'clientSubject',
  'retry',
  'attemptFailure',
  'workload',
  'side',
  'peer',
  'service',
  'policy',
];

/** How many of them a gateway's JSON lines have. */
const GATEWAY_FIELDS = 29;

/** Field numbers: the positions in `accessLogFields`, and one more for the time of the common format. */
export const LogField = {
  TIME: 0,
  METHOD: 1,
  PATH: 2,
  HOST: 3,
  PROTOCOL: 4,
  STATUS: 5,
  REASON: 6,
  DETAIL: 7,
  BYTES_RECEIVED: 8,
  BYTES_SENT: 9,
  DURATION_MS: 10,
  UPSTREAM_MS: 11,
  CLIENT_ADDRESS: 12,
  CLIENT_PORT: 13,
  REQUEST_ID: 14,
  USER_AGENT: 15,
  REFERER: 16,
  ROUTE: 17,
  BACKEND: 18,
  ENDPOINT: 19,
  LISTENER: 20,
  ATTEMPTS: 21,
  EPOCH: 22,
  WORKER: 23,
  TLS_VERSION: 24,
  SERVER_NAME: 25,
  CLIENT_SUBJECT: 26,
  RETRY: 27,
  ATTEMPT_FAILURE: 28,
  WORKLOAD: 29,
  SIDE: 30,
  PEER: 31,
  SERVICE: 32,
  POLICY: 33,
  COMMON_TIME: 34,
} as const;

/** A format ready for writing: `literals[0] field[0] literals[1] ... literals[n]`, newline included. */
export interface CompiledFormat {
  /** One more than there are fields; entries may be empty. */
  literals: FixedText[];
  /** `LogField` numbers. */
  fields: Int32Array;
  /** How often the most frequent field occurs, 1 or more. */
  repeats: number;
  /** Values are JSON values (text quoted, absent ones null); otherwise bare text (absent ones "-"). */
  json: boolean;
}

const commonTemplate =
  '%{clientAddress} - - [%{commonTime}] "%{method} %{path} %{protocol}" %{status} %{bytesSent} "%{referer}" "%{userAgent}"';

/** One piece of a template: literal text, a field name, or a mistake. */
type Piece = { text: string } | { name: string } | { mistake: string };

/**
 * Says what is wrong with an access log format, as one sentence; undefined when nothing is.
 * `json` and `common` are formats of their own, anything else is a template.
 */
export function validateAccessLogTemplate(text: string): string | undefined {
  if (text === 'json' || text === 'common') return undefined;
  if (/[\x00-\x08\x0a-\x1f\x7f]/.test(text)) {
    return 'an access log template may not contain line breaks or other control characters';
  }
  let fields = 0;
  for (const piece of pieces(text)) {
    if ('mistake' in piece) return piece.mistake;
    if (!('name' in piece)) continue;
    if (!accessLogFields.includes(piece.name)) {
      const near = nearest(piece.name);
      const hint = near === undefined ? `known fields: ${accessLogFields.join(', ')}` : `did you mean %{${near}}?`;
      return `unknown access log field %{${piece.name}}; ${hint}`;
    }
    fields++;
  }
  if (fields === 0) {
    return `expected json, common, or a template with at least one %{field} such as "%{method} %{path} %{status}"`;
  }
  return undefined;
}

/**
 * Compiles `json`, `common` or a template; `mesh`: for a node proxy. Throws an Error with the validation sentence for a
 * template that `validateAccessLogTemplate` refuses.
 */
export function compileAccessLogFormat(format: string, mesh = false): CompiledFormat {
  if (format === 'json') return compileJson(mesh ? accessLogFields : accessLogFields.slice(0, GATEWAY_FIELDS));
  if (format === 'common') return compileTemplate(commonTemplate);
  const mistake = validateAccessLogTemplate(format);
  if (mistake !== undefined) throw new Error(mistake);
  return compileTemplate(format);
}

function compileJson(names: readonly string[]): CompiledFormat {
  const literals = names.map((name, index) => `${index === 0 ? '{' : ','}"${name}":`);
  literals.push('}\n');
  return compiled(literals, [...names.keys()], true);
}

function compileTemplate(template: string): CompiledFormat {
  const literals: string[] = [''];
  const fields: number[] = [];
  for (const piece of pieces(template)) {
    if ('text' in piece) {
      literals[literals.length - 1] += piece.text;
    } else if ('name' in piece) {
      fields.push(piece.name === 'commonTime' ? LogField.COMMON_TIME : accessLogFields.indexOf(piece.name));
      literals.push('');
    }
  }
  literals[literals.length - 1] += '\n';
  return compiled(literals, fields, false);
}

function compiled(literals: string[], fields: number[], json: boolean): CompiledFormat {
  const counts = new Array<number>(Object.keys(LogField).length).fill(0);
  for (const field of fields) counts[field]++;
  return {
    literals: literals.map(fixedText),
    fields: Int32Array.from(fields),
    repeats: Math.max(1, ...counts),
    json,
  };
}

/** Splits a template; `%%` is a percent sign, `%{name}` a field, any other `%` a mistake. */
function pieces(template: string): Piece[] {
  const out: Piece[] = [];
  let at = 0;
  while (at < template.length) {
    const percent = template.indexOf('%', at);
    if (percent < 0) {
      out.push({ text: template.slice(at) });
      break;
    }
    if (percent > at) out.push({ text: template.slice(at, percent) });
    const next = template[percent + 1];
    if (next === '%') {
      out.push({ text: '%' });
      at = percent + 2;
    } else if (next === '{') {
      const end = template.indexOf('}', percent);
      if (end < 0) {
        out.push({ mistake: `"${template.slice(percent, percent + 20)}" is not closed by "}"` });
        break;
      }
      out.push({ name: template.slice(percent + 2, end) });
      at = end + 1;
    } else {
      out.push({ mistake: 'a field is written %{name}, and a percent sign itself %%' });
      break;
    }
  }
  return out;
}

/** The known field that a misspelt name most likely means: at most two edits away, case ignored. */
function nearest(name: string): string | undefined {
  let best: string | undefined;
  let bestEdits = 3;
  for (const field of accessLogFields) {
    const edits = editDistance(name.toLowerCase().replace(/[-_]/g, ''), field.toLowerCase());
    if (edits < bestEdits) {
      best = field;
      bestEdits = edits;
    }
  }
  return best;
}

/** Levenshtein distance; names longer than 64 characters are nobody's typing mistake. */
function editDistance(a: string, b: string): number {
  if (a.length > 64) return a.length;
  let previous = Array.from({ length: b.length + 1 }, (_, index) => index);
  for (let i = 1; i <= a.length; i++) {
    const current = [i];
    for (let j = 1; j <= b.length; j++) {
      const replaced = previous[j - 1]! + (a[i - 1] === b[j - 1] ? 0 : 1);
      current.push(Math.min(replaced, previous[j]! + 1, current[j - 1]! + 1));
    }
    previous = current;
  }
  return previous[b.length]!;
}
