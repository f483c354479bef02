// `portcullis explain ID`: what happened to one request, in plain sentences.
//
// `explainRecord` turns a flight record into sentences; `runExplain` asks the admin port of a
// running gateway for them. Runs in its own short process and on the control thread.

import { DETAIL_POLICY, Detail, Reason, reasonText } from '../core/exchange/reasons.ts';
import { retryEndSentence } from '../core/exchange/retry-outcome.ts';
import { errnoSentence } from '../core/ffi/errno.ts';
import { type AdminAddress, askAdmin, parseAdminAddress } from '../core/process/admin-client.ts';
import type { FlightRecord, RecordedText } from '../core/telemetry/flight-reader.ts';
import { detailText } from '../core/telemetry/outcome-names.ts';
import { hintFor } from './explain-hints.ts';

/** Answer of the admin port to /explain. */
export interface ExplainAnswer {
  record: FlightRecord;
  explanation: string[];
}

/** Where sentences go; process.stdout and process.stderr are such. */
export interface TextOutput {
  write(text: string): unknown;
}

/** Exit codes, as in core/process/exit-codes.ts: found; not found or not reachable; wrong use. */
const FOUND = 0;
const NOT_FOUND = 1;
const USAGE = 2;

const ADMIN_DEFAULT = '127.0.0.1:9901';

/** Most bytes of an answer: one record is about 1 KiB. */
const ANSWER_BYTES_MAX = 1024 * 1024;

const usage = `usage: portcullis explain ID [--admin HOST:PORT] [--json]

Explains what happened to a request that failed or was slow.
ID is the X-Request-Id of the request, as in the access log.
  --admin HOST:PORT  admin port of the running gateway (default ${ADMIN_DEFAULT})
  --json             print the record and the explanation as JSON
`;

/**
 * Explains one recorded exchange: what was asked, where it went, what happened when, who ended it,
 * and where there is one, a hint what to do. One sentence or line per entry, no line breaks, and no
 * control characters whatever the client sent.
 */
export function explainRecord(record: FlightRecord): string[] {
  const lines = [
    asked(record),
    ...ofMesh(record),
    routed(record),
    ...forwarded(record),
    outcome(record),
    ...cause(record),
  ];
  const hint = hintFor(record);
  if (hint !== undefined) lines.push(`Hint: ${hint}`);
  return lines.map(printable);
}

/** Runs the command; `args` are those after `explain`. Returns the exit code. */
export async function runExplain(args: readonly string[], out: TextOutput, err: TextOutput): Promise<number> {
  const options = parseArguments(args);
  if (typeof options === 'string') {
    err.write(`${options}\n\n${usage}`);
    return USAGE;
  }
  if (options.help) {
    out.write(usage);
    return FOUND;
  }
  let answer: { status: number; body: string };
  try {
    answer = await askAdmin(options.admin, `/explain?id=${encodeURIComponent(options.id)}`, ANSWER_BYTES_MAX);
  } catch (error) {
    const cause = (error as Error).message;
    err.write(
      `cannot reach the admin port ${options.admin.text}: ${cause}; is the gateway running, with admin on? (Of a node proxy: --admin 127.0.0.1:9902)\n`,
    );
    return NOT_FOUND;
  }
  const parsed = parseAnswer(answer.body);
  if (answer.status !== 200 || parsed?.explanation === undefined) {
    err.write(
      `${printable(parsed?.error ?? `${options.admin.text} answered ${answer.status}, which is no explanation`)}\n`,
    );
    return NOT_FOUND;
  }
  if (options.json) {
    out.write(`${asciiJson(JSON.stringify(parsed, null, 2))}\n`);
  } else {
    out.write(`${parsed.explanation.map(printable).join('\n')}\n`);
  }
  return FOUND;
}

// -- sentences -------------------------------------------------------------------

function asked(record: FlightRecord): string {
  const ended = `${record.time}, after ${milliseconds(record.durationMs)}`;
  const client = record.clientAddress === '' ? 'A client' : `${clientText(record)}`;
  const where = record.listener === '' ? '' : ` on listener "${record.listener}"`;
  if (record.method === '') {
    return `${client} sent something that did not become a request${where}; that ended at ${ended}.`;
  }
  const host = record.host.length === 0 ? '' : ` of ${textOf(record.host)}`;
  return `${client} asked for ${record.method} ${textOf(record.path)}${host}${where} (${record.protocol}); that ended at ${ended}.`;
}

function clientText(record: FlightRecord): string {
  const address = record.clientAddress.includes(':') ? `[${record.clientAddress}]` : record.clientAddress;
  return `${address}:${record.clientPort}`;
}

/** Whose traffic it was, who was at the other end, and which policy let it in; for node proxies. */
function ofMesh({ detail, peer, policy, reason, service, side, workload }: FlightRecord): string[] {
  if (side === '') return [];
  const lines =
    side === 'outbound'
      ? [`Workload ${workload} sent it${service === '' ? '' : ` to service ${service}`}; ${farEnd('to', peer)}.`]
      : [`It came to workload ${workload}; ${farEnd('from', peer)}.`];
  if (policy !== '' && reason !== Reason.UNAUTHORIZED && detail < DETAIL_POLICY) {
    lines.push(`The authorisation policy "${policy}" let it in.`);
  }
  return lines;
}

function farEnd(way: 'to' | 'from', peer: string): string {
  if (peer !== '') return `the tunnel led ${way} ${peer}`;
  return way === 'to' ? 'there was no tunnel for it' : 'it came in plain text, as from nobody';
}

function routed(record: FlightRecord): string {
  const epoch = `configuration epoch ${record.epoch}, worker ${record.worker}`;
  if (record.route === '') return `It matched no rule (${epoch}).`;
  const backend = record.backend === '' ? '' : ` and was meant for backend "${record.backend}"`;
  return `It matched ${record.route}${backend} (${epoch}).`;
}

function forwarded(record: FlightRecord): string[] {
  if (record.endpoint === '') return record.backend === '' ? [] : ['No endpoint was chosen for it.'];
  const attempts = record.attempts > 1 ? `, in attempt ${record.attempts}` : '';
  const lines = [`It went to endpoint ${record.endpoint}${attempts}.`];
  if (record.attemptFailure !== '') lines.push(`The last attempt that failed: ${record.attemptFailure}.`);
  if (record.retryEnd !== 0) lines.push(retryEndSentence(record.retryEnd));
  if (record.reusedConnection) {
    const uses = record.upstreamConnectionUses;
    const age = milliseconds(record.upstreamConnectionAgeMs);
    lines.push(
      `The connection was a kept one: ${age} old, with ${uses} earlier ${uses === 1 ? 'request' : 'requests'}.`,
    );
  } else if (record.connectMs !== null) {
    lines.push(`A new connection was ready ${milliseconds(record.connectMs)} after the request began.`);
  } else {
    lines.push('A new connection was started, and was never ready.');
  }
  if (record.upstreamMs !== null) {
    lines.push(`The first byte of its response came ${milliseconds(record.upstreamMs)} after that.`);
  } else if (record.connectMs !== null) {
    lines.push('No byte of a response came.');
  }
  return lines;
}

function outcome(record: FlightRecord): string {
  const bytes = `${record.bytesReceived} body bytes came from the client, ${record.bytesSent} went to it`;
  if (record.tunnel) return `It became a tunnel (status ${record.status}); ${bytes}.`;
  if (record.status === 0) return `The client got no response; ${bytes}.`;
  const by = record.generated ? 'made by this gateway' : 'from the upstream';
  const whole = record.responseComplete ? '' : ', and did not get all of it';
  return `The client got status ${record.status}, ${by}${whole}; ${bytes}.`;
}

function cause(record: FlightRecord): string[] {
  if (record.reason === Reason.NONE) {
    if (record.status >= 500)
      return ["The exchange itself went as it should: the error is the upstream application's own."];
    return ['Nothing failed: the exchange is recorded because it took long.'];
  }
  const { flag, sentence } = reasonText(record.reason);
  const lines = [`Reason ${flag}: ${sentence}`];
  const detail = detailText(record.detail);
  if (detail !== '') lines.push(detail);
  if (record.errno !== 0 || record.detail === Detail.CONNECT_ERRNO) {
    lines.push(`The system said: ${errnoSentence(record.errno)}.`);
  }
  return lines;
}

function textOf(value: RecordedText): string {
  return value.truncated ? `${value.text}... (${value.length} bytes)` : value.text;
}

/** Milliseconds for people: microseconds matter below 10 ms, and nobody counts in 90000 ms. */
function milliseconds(ms: number): string {
  if (ms < 10) return `${Number(ms.toFixed(3))} ms`;
  if (ms < 10_000) return `${Math.round(ms)} ms`;
  return `${Number((ms / 1000).toFixed(1))} s`;
}

/** A text from the wire may hold terminal control codes (C0, DEL, C1): shown as \xhh. */
function printable(text: string): string {
  return text.replace(
    /[\u0000-\u001f\u007f-\u009f]/g,
    (character) => `\\x${character.charCodeAt(0).toString(16).padStart(2, '0')}`,
  );
}

/** The same for JSON, where the escape must be JSON's own. */
function asciiJson(json: string): string {
  return json.replace(/[\u007f-\u009f]/g, (character) => `\\u00${character.charCodeAt(0).toString(16)}`);
}

// -- command -----------------------------------------------------------------------

interface ExplainOptions {
  id: string;
  admin: AdminAddress;
  json: boolean;
  help: boolean;
}

/** The options, or a sentence that says what is wrong with them. */
function parseArguments(args: readonly string[]): ExplainOptions | string {
  let id = '';
  let admin = ADMIN_DEFAULT;
  let json = false;
  let help = false;
  for (let i = 0; i < args.length; i++) {
    const argument = args[i];
    if (argument === '--json') json = true;
    else if (argument === '--help' || argument === '-h') help = true;
    else if (argument === '--admin') {
      if (i + 1 === args.length) return '--admin needs HOST:PORT';
      admin = args[++i];
    } else if (argument.startsWith('--admin=')) admin = argument.slice('--admin='.length);
    else if (argument.startsWith('-')) return `unknown option ${argument}`;
    else if (id !== '') return `one request id is expected, not also "${argument}"`;
    else id = argument;
  }
  const address = parseAdminAddress(admin);
  if (address === undefined) return `--admin: expected HOST:PORT, not "${admin}"`;
  if (id === '' && !help) return 'a request id is missing';
  return { id, admin: address, json, help };
}

function parseAnswer(body: string): (Partial<ExplainAnswer> & { error?: string }) | undefined {
  try {
    return JSON.parse(body);
  } catch {
    return undefined;
  }
}
