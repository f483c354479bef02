// The tables of docs/observability.md, made from the code that they describe.
//
// `scripts/node gateway/admin/observability-tables.ts` writes them into the page; a unit test fails when the
// page and the code differ. Not part of the running gateway.

import { readFileSync, writeFileSync } from 'node:fs';
import { Detail, detailSentence, REASON_COUNT, reasonText } from '../../core/exchange/reasons.ts';
import { ParseError, parseErrorSentence } from '../../core/http1/errors.ts';
import { accessLogFields } from '../../core/telemetry/access-log-format.ts';
import { detailName, parseErrorWord } from '../../core/telemetry/outcome-names.ts';
import { metricDefinitions } from './metrics.ts';

/** The page that holds the tables. */
export const observabilityPage = new URL('../../docs/observability.md', import.meta.url);

const fieldHelp: Record<string, [type: string, meaning: string]> = {
  time: ['text', 'When the exchange ended, RFC 3339 in UTC with milliseconds.'],
  method: ['text', 'Request method.'],
  path: ['text', 'Path and query as sent upstream.'],
  host: ['text', 'Host that the request was for.'],
  protocol: ['text', 'Protocol of the client: `HTTP/1.0`, `HTTP/1.1`, `HTTP/2.0`.'],
  status: ['number', 'Status sent to the client; 0: none.'],
  reason: ['text', 'Flag of the reason, see below; absent when all went well.'],
  detail: ['text', 'Word of the detail, see below; absent when there is none.'],
  bytesReceived: ['number', 'Body bytes from the client.'],
  bytesSent: ['number', 'Body bytes to the client.'],
  durationMs: ['number', 'From the start of the request to the end of the response, in milliseconds.'],
  upstreamMs: [
    'number',
    'From the upstream connection being ready to its first response byte, in milliseconds; absent when none came.',
  ],
  clientAddress: ['text', 'IP address of the client (behind trusted proxies: the one they name).'],
  clientPort: ['number', 'Its port; 0 when only the address is known.'],
  requestId: ['text', 'X-Request-Id, for `portcullis explain`.'],
  userAgent: ['text', 'User-Agent.'],
  referer: ['text', 'Referer.'],
  route: ['text', 'Route and rule that matched, such as `shop rule 1` (rules count from 1); absent when none did.'],
  backend: ['text', 'Backend of the rule.'],
  endpoint: ['text', 'Endpoint of the last attempt, `address:port`.'],
  listener: ['text', 'Name of the listener.'],
  attempts: ['number', 'Attempts at an upstream; 0: none.'],
  retry: [
    'text',
    'What became of retries: `succeeded`, why there was no (further) one, or how hedging went, see resilience.md; absent when nothing called for one.',
  ],
  attemptFailure: [
    'text',
    'The last failure for which the rule has retries: a word of the detail, `status_503`, `grpc_status_14`.',
  ],
  epoch: ['number', 'Configuration that the request ran on.'],
  worker: ['number', 'Worker that served it.'],
  tlsVersion: ['text', 'TLS version of the client connection, such as `TLSv1.3`; absent without TLS.'],
  serverName: ['text', 'Name in SNI that the client asked for; absent without TLS or SNI.'],
  clientSubject: ['text', "Subject of the client's certificate; absent when it has shown none."],
  workload: [
    'text',
    'Node proxies: the workload of the node, `namespace/name`. This and what follows is absent elsewhere.',
  ],
  side: ['text', 'Node proxies: `outbound`: the workload began it; `inbound`: it came to the workload.'],
  peer: [
    'text',
    'Node proxies: SPIFFE identity of who asks; outbound: the one that the other end has to have. Absent in plain text.',
  ],
  service: [
    'text',
    'Node proxies, outbound: service and port that the workload connected to, `namespace/hostname:port`; absent when it was none.',
  ],
  policy: [
    'text',
    'Node proxies, inbound: authorisation policies that decided: the one that let it in, or those that did not; absent when there was nothing to decide.',
  ],
};

/** Every table by the name of its place in the page. */
export function observabilityTables(): Record<string, string> {
  return {
    metrics: table(
      ['Metric', 'Type', 'Labels', 'Meaning'],
      metricDefinitions.map(({ name, type, labels, help }) => [code(name), type, labels.map(code).join(', '), help]),
    ),
    fields: table(
      ['Field', 'JSON type', 'Meaning'],
      accessLogFields.map((name) => [code(name), ...(fieldHelp[name] ?? ['', ''])]),
    ),
    reasons: table(
      ['Flag', 'Meaning'],
      Array.from({ length: REASON_COUNT - 1 }, (_, index) => {
        const { flag, sentence } = reasonText(index + 1);
        return [code(flag), sentence];
      }),
    ),
    details: table(['Detail', 'Meaning'], detailRows()),
  };
}

/**
 * Each word once. The details come first: where a parse error has the same word, the exchange says the
 * same of it, and knows the setting that applies.
 */
function detailRows(): string[][] {
  const sentences = new Map<string, string>();
  const add = (word: string, sentence: string): void => {
    if (!sentences.has(word)) sentences.set(word, sentence);
  };
  for (const detail of Object.values(Detail)) {
    if (detail !== Detail.NONE) add(detailName(detail), detailSentence(detail));
  }
  add('limit_NAME', 'The rate limit of this name refused the request.');
  add('denied_by_POLICY rule N', 'This rule of the authorisation policy `namespace/name` denies it.');
  add('not_allowed_by_POLICY', 'Of these authorisation policies, which say who is allowed, no rule matched.');
  for (const error of Object.values(ParseError)) add(parseErrorWord(error), parseErrorSentence(error));
  return [...sentences].map(([word, sentence]) => [code(word), sentence]);
}

/** The page with every table put between its markers. Throws when a marker is missing. */
export function insertTables(page: string): string {
  for (const [name, text] of Object.entries(observabilityTables())) {
    const begin = `<!-- begin ${name} -->\n`;
    const end = `<!-- end ${name} -->`;
    const from = page.indexOf(begin);
    const to = page.indexOf(end);
    if (from < 0 || to < from) throw new Error(`docs/observability.md has no place for the table "${name}"`);
    page = page.slice(0, from + begin.length) + text + page.slice(to);
  }
  return page;
}

function table(head: string[], rows: string[][]): string {
  const line = (cells: string[]): string => `| ${cells.map((cell) => cell.replaceAll('|', '\\|')).join(' | ')} |\n`;
  return line(head) + line(head.map(() => '---')) + rows.map(line).join('');
}

function code(text: string): string {
  return `\`${text}\``;
}

if (import.meta.main) {
  writeFileSync(observabilityPage, insertTables(readFileSync(observabilityPage, 'utf8')));
}
