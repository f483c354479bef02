// Differential fuzzing of the HTTP/1 parser: ours against llhttp (inside Node) and http-parser-js.
//
//   node test/fuzz/http1-differential.ts [seed] [cases]
//
// The rule: we may refuse what others accept, for a reason listed in `stricter`; whatever we accept
// must mean the same to the others (start line, version, fields, framing, body, trailers), or the
// difference is listed in `explained` with its reason. Also checked on every stream: the outcome
// depends neither on how it is cut into pieces nor on the bytes around it, and nothing throws.

import { pathToFileURL } from 'node:url';
import type { ParseErrorName } from '../../core/http1/errors.ts';
import { Random } from '../sim/random.ts';
import { generatePieces, generateStream } from './http1-generate.ts';
import {
  llhttpMethods,
  type MessageKind,
  parserJsMethods,
  type Reading,
  readWithLlhttp,
  readWithOurs,
  readWithParserJs,
  type SeenMessage,
} from './http1-readers.ts';

/** Errors of ours on streams that llhttp accepts, each with the reason for being stricter. */
export const stricter: Partial<Record<ParseErrorName, string>> = {
  BARE_LF: 'llhttp passes over any line feeds before a start line; a bare LF never ends a line for us.',
  BARE_CR: 'llhttp passes over any carriage returns before a start line.',
  LEADING_EMPTY_LINES: 'RFC 9112 §2.2 asks for one empty line to be ignored; we ignore two, llhttp any number.',
  TARGET_INVALID: 'llhttp accepts fragments; they are never sent, and servers route them differently.',
  TARGET_FORM_INVALID: 'llhttp accepts an asterisk with any method.',
  TARGET_SCHEME_UNSUPPORTED: 'We proxy http and https only.',
  TARGET_AUTHORITY_INVALID: 'llhttp does not check ports and accepts userinfo and empty authorities.',
  VERSION_MISSING: 'llhttp accepts HTTP/0.9 request lines.',
  VERSION_INVALID: 'llhttp accepts several spaces before the version.',
  VERSION_UNSUPPORTED: 'llhttp also takes HTTP/0.9 and HTTP/2.0 as versions.',
  STATUS_CODE_INVALID: 'RFC 9110 §15: status codes above 599 are invalid; llhttp takes any three digits.',
  STATUS_LINE_INVALID: 'llhttp passes over line ends before a status line.',
  REASON_PHRASE_INVALID: 'llhttp accepts control bytes in a reason phrase.',
  HOST_MISSING: 'Node checks Host above llhttp.',
  HOST_DUPLICATE: 'llhttp does not look at Host.',
  HOST_INVALID: 'llhttp does not look at Host.',
  CONTENT_LENGTH_TOO_LARGE: 'llhttp counts in 64 bits; we count to 2^53 - 1.',
  TRANSFER_ENCODING_IN_HTTP10: 'RFC 9112 §6.1: such a message has faulty framing.',
  TRANSFER_ENCODING_INVALID: 'llhttp accepts empty list elements, and in responses any coding (read until close).',
  TRANSFER_ENCODING_DUPLICATE: 'llhttp joins Transfer-Encoding fields; proxies disagree on how.',
  TRANSFER_CODING_UNSUPPORTED: 'llhttp leaves codings other than chunked to its user.',
  CONNECTION_INVALID: 'llhttp skips options that are not tokens.',
  CONNECTION_NAMES_PROTECTED_FIELD: 'A way to change a request between two hops; llhttp is no proxy.',
  EXPECTATION_UNKNOWN: 'Node answers Expect above llhttp.',
  CONNECT_WITH_CONTENT: 'RFC 9110 §9.3.6: CONNECT has no content; llhttp ignores its length.',
  CHUNK_SIZE_TOO_LARGE: 'llhttp accepts any number of leading zeros, and counts in 64 bits.',
  CHUNK_EXTENSION_INVALID: 'llhttp accepts extensions with an empty name or an empty value.',
  TRAILER_FORBIDDEN: 'llhttp reports any trailer field; these would change what the head has decided.',
};

/** A difference in something that we accept. */
interface Difference {
  peer: 'llhttp' | 'http-parser-js';
  kind: MessageKind;
  /** Which member differs; 'missing' when the peer has no such message. */
  member: keyof SeenMessage | 'missing';
  ours: SeenMessage;
  theirs: SeenMessage | undefined;
  /** Our message before this one. */
  before: SeenMessage | undefined;
  /** How the peer's reading ended. */
  peerEnd: string;
  /** The whole stream, as latin1. */
  stream: string;
}

/** Why a peer may see an accepted message differently. The name is the explanation. */
export const explained: Record<string, (difference: Difference) => boolean> = {
  'llhttp knows a fixed list of methods; RFC 9110 §9.1 lets any token be one': ({
    peer,
    kind,
    member,
    ours,
    peerEnd,
  }) =>
    peer === 'llhttp' &&
    kind === 'request' &&
    member === 'missing' &&
    peerEnd === 'HPE_INVALID_METHOD' &&
    !llhttpMethods.has(firstWord(ours)),
  'llhttp keeps the method PRI for the HTTP/2 preface; in HTTP/1.1 it is a token like any other': ({
    peer,
    member,
    ours,
    peerEnd,
  }) => peer === 'llhttp' && member === 'missing' && peerEnd === 'HPE_INVALID_VERSION' && firstWord(ours) === 'PRI',
  'http-parser-js knows a fixed list of methods': ({ peer, kind, member, ours }) =>
    peer === 'http-parser-js' && kind === 'request' && member === 'missing' && !parserJsMethods.has(firstWord(ours)),
  'Peers count a body that ends with the connection against keep-alive; our exchange does so': ({
    kind,
    member,
    ours,
    theirs,
  }) => kind === 'response' && member === 'keepAlive' && theirs?.keepAlive === false && !hasLength(ours),
  'In HTTP/1.0 peers let keep-alive win over close; RFC 9112 §9.3 lets close win': ({ member, ours, theirs }) =>
    member === 'keepAlive' &&
    ours.version === '1.0' &&
    theirs?.keepAlive === true &&
    /\bclose\b/i.test(connection(ours)) &&
    /\bkeep-alive\b/i.test(connection(ours)),
  'http-parser-js looks for close and keep-alive anywhere in Connection, not for list members': ({
    peer,
    member,
    ours,
  }) => peer === 'http-parser-js' && member === 'keepAlive' && /close|keep-alive/i.test(connection(ours)),
  'Peers stop at an Upgrade that we ignore: in HTTP/1.0 (RFC 9110 §7.8), given twice, or empty': ({
    member,
    ours,
    before,
    peerEnd,
  }) => peerEnd === 'stop' && (member === 'missing' ? before !== undefined && hasUpgrade(before) : hasUpgrade(ours)),
  'llhttp does not remove a tab after chunked (RFC 9110 §5.5 does): an error, or not chunked': ({ peer, stream }) =>
    peer === 'llhttp' && /transfer-encoding:[ \t]*chunked *\t/i.test(stream),
  'http-parser-js reads a body after 1xx, 204 and 304, against RFC 9112 §6.3': ({ peer, kind, ours, before }) =>
    peer === 'http-parser-js' &&
    kind === 'response' &&
    [ours, before].some(
      (message) => message !== undefined && /^(1..|204|304) /.test(message.start) && hasLength(message),
    ),
};

function firstWord(message: SeenMessage): string {
  return message.start.slice(0, message.start.indexOf(' '));
}

/** All Connection values of a message. */
function connection(message: SeenMessage): string {
  return message.fields.filter((field) => /^connection:/i.test(field)).join();
}

function hasUpgrade(message: SeenMessage): boolean {
  return message.fields.some((field) => /^upgrade:/i.test(field)) && /upgrade/i.test(connection(message));
}

/** Whether the head itself says where the body ends. */
function hasLength(message: SeenMessage): boolean {
  return message.fields.some((field) => /^(content-length|transfer-encoding):/i.test(field));
}

const comparedMembers = ['start', 'version', 'fields', 'keepAlive', 'body', 'trailers', 'complete'] as const;

/** First difference between our reading and a peer's that no class explains, or null. */
function unexplained(
  peer: Difference['peer'],
  kind: MessageKind,
  input: Buffer,
  ours: Reading,
  theirs: Reading,
  seen: Map<string, number>,
): string | null {
  for (let index = 0; index < ours.messages.length; index++) {
    const our = ours.messages[index];
    const their = theirs.messages[index];
    const unfinished = !our.complete && ours.end !== 'more';
    const members = unfinished ? comparedMembers.slice(0, 4) : comparedMembers;
    for (const member of their === undefined ? (['missing'] as const) : members) {
      if (member !== 'missing' && JSON.stringify(our[member]) === JSON.stringify(their?.[member])) continue;
      const difference = {
        peer,
        kind,
        member,
        ours: our,
        theirs: their,
        before: ours.messages[index - 1],
        peerEnd: theirs.end,
        stream: input.toString('latin1'),
      };
      const reason = Object.keys(explained).find((name) => explained[name](difference));
      if (reason === undefined) {
        return `${peer} ${kind} ${member}: ours ${JSON.stringify(our)} (${ours.end}), theirs ${JSON.stringify(their)} (${theirs.end})`;
      }
      seen.set(reason, (seen.get(reason) ?? 0) + 1);
      // After an explained difference the streams may be out of step: nothing more can be compared.
      return null;
    }
  }
  return null;
}

/** Our refusal, if llhttp got through the message that we refused and no reason is listed; else null. */
function unlistedRefusal(kind: MessageKind, ours: Reading, theirs: Reading, seen: Map<string, number>): string | null {
  if (ours.end === 'more' || ours.end === 'stop') return null;
  const done = ours.messages.filter((message) => message.complete).length;
  const their = theirs.messages[done];
  // llhttp refuses it as well, or had no chance to see it.
  if (their === undefined || (!their.complete && theirs.end !== 'stop')) return null;
  const reason = stricter[ours.end as ParseErrorName];
  if (reason === undefined) return `llhttp ${kind} accepts ${JSON.stringify(their)}, we say ${ours.end}`;
  seen.set(ours.end, (seen.get(ours.end) ?? 0) + 1);
  return null;
}

/** What a run did and found. */
export interface FuzzReport {
  cases: number;
  /** Messages accepted to their end. */
  accepted: number;
  /** How often each listed reason was needed. */
  reasons: Map<string, number>;
  /** Unexplained findings with the stream that shows each (JSON, latin1); stops at ten. */
  findings: string[];
}

/** Runs `cases` streams drawn from `seed`. */
export function fuzz(seed: number, cases: number): FuzzReport {
  const random = new Random(seed);
  const report: FuzzReport = { cases: 0, accepted: 0, reasons: new Map(), findings: [] };
  while (report.cases < cases && report.findings.length < 10) {
    report.cases++;
    const kind: MessageKind = random.chance(0.7) ? 'request' : 'response';
    const input = generateStream(random, kind);
    const find = (text: string | null): void => {
      if (text !== null) report.findings.push(`${text}\n  stream ${JSON.stringify(input.toString('latin1'))}`);
    };
    try {
      const whole = readWithOurs(kind, input, [input.length], 0);
      report.accepted += whole.messages.filter((message) => message.complete).length;
      const pieces = generatePieces(random, input.length);
      const cut = readWithOurs(kind, input, pieces, random.pick([0x0a, 0x0d, 0x30, 0x61]));
      if (JSON.stringify(whole) !== JSON.stringify(cut)) {
        find(`cut at ${pieces}: ${JSON.stringify(cut)}, whole: ${JSON.stringify(whole)}`);
      }
      const llhttpReading = readWithLlhttp(kind, input);
      find(unexplained('llhttp', kind, input, whole, llhttpReading, report.reasons));
      find(unlistedRefusal(kind, whole, llhttpReading, report.reasons));
      find(unexplained('http-parser-js', kind, input, whole, readWithParserJs(kind, input), report.reasons));
    } catch (error) {
      find(`threw ${error instanceof Error ? error.stack : error}`);
    }
  }
  return report;
}

if (process.argv[1] !== undefined && import.meta.url === pathToFileURL(process.argv[1]).href) {
  const seed = Number(process.argv[2] ?? Math.floor(Math.random() * 2 ** 32));
  const report = fuzz(seed, Number(process.argv[3] ?? 20_000));
  console.log(`seed ${seed}: ${report.cases} streams, ${report.accepted} messages accepted`);
  for (const [reason, count] of [...report.reasons].sort((a, b) => b[1] - a[1])) console.log(`${count} x ${reason}`);
  for (const finding of report.findings) console.log(`\nUNEXPLAINED ${finding}`);
  process.exitCode = report.findings.length === 0 ? 0 : 1;
}
