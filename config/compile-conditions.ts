// Compiles what matches ask for beyond host and path into the sections of conditions and expressions of
// the route table.
//
// Runs where compile-routes.ts runs. Equal lists of conditions and equal patterns are written once.
// Layout: core/routing/route-table-format.ts.

import { headerNames } from '../core/http1/header-ids.ts';
import { DfaRecord } from '../core/routing/dfa.ts';
import { compileRegex } from '../core/routing/regex-dfa.ts';
import { Condition, ConditionKind, Network } from '../core/routing/route-table-format.ts';
import type { MatchConfig } from './config.ts';
import type { TextMatchConfig } from './match-normalise.ts';
import { parseNetwork } from './networks.ts';
import type { TextPool } from './text-pool.ts';

/** Where the conditions of a match lie: start in words of the section, and their number. */
export type ConditionPlace = [start: number, count: number];

const NONE: ConditionPlace = [0, 0];

/** Collects conditions and expressions. */
export class ConditionCompiler {
  /** The section of conditions. */
  readonly words: number[] = [];
  /** Some condition asks for the client's address. */
  needsClient = false;
  private readonly text: TextPool;
  private readonly places = new Map<string, ConditionPlace>();
  private readonly patterns = new Map<string, number>();
  private readonly expressions: Int32Array[] = [];
  private expressionWords = 0;

  constructor(text: TextPool) {
    this.text = text;
  }

  /** Compiles the conditions of a match, that of a path that is a regular expression first. */
  add(match: MatchConfig): ConditionPlace {
    const pattern = match.path.type === 'RegularExpression' ? match.path.value : null;
    const conditions = match.conditions ?? null;
    if (pattern === null && conditions === null) return NONE;
    const key = JSON.stringify([pattern, conditions]);
    const known = this.places.get(key);
    if (known !== undefined) return known;

    const rows: number[][] = [];
    if (pattern !== null) rows.push(row(ConditionKind.PATH, 0, 0, 0, this.expression(pattern)));
    if (conditions !== null) {
      const { method, headers, queryParams, grpc, clientCertificate, sourceAddresses } = conditions;
      if (method !== null) rows.push(this.textRow(ConditionKind.METHOD, method));
      if (grpc !== null) {
        rows.push(row(ConditionKind.GRPC));
        if (grpc.pathPattern !== null) {
          rows.push(row(ConditionKind.PATH, 0, 0, 0, this.expression(grpc.pathPattern)));
        }
      }
      for (const header of headers) {
        const id = Math.max(0, headerNames.indexOf(header.name));
        rows.push(this.namedRow(ConditionKind.HEADER, ConditionKind.HEADER_EXPRESSION, header, id));
      }
      for (const parameter of queryParams) {
        rows.push(this.namedRow(ConditionKind.QUERY, ConditionKind.QUERY_EXPRESSION, parameter, 0));
      }
      if (clientCertificate !== null) {
        const { subjectAltNames, sha256 } = clientCertificate;
        const names = subjectAltNames.map(({ type, value }) =>
          type === 'RegularExpression'
            ? row(ConditionKind.NAME_EXPRESSION, 0, 0, 0, this.expression(value))
            : this.textRow(type === 'Prefix' ? ConditionKind.NAME_PREFIX : ConditionKind.NAME, value),
        );
        rows.push(row(ConditionKind.CERTIFICATE, 0, 0, 0, this.put(names), names.length));
        if (sha256.length > 0) {
          const hashes = sha256.map((hash) => this.textRow(ConditionKind.NAME, hash));
          rows.push(row(ConditionKind.CERTIFICATE_HASH, 0, 0, 0, this.put(hashes), hashes.length));
        }
      }
      if (sourceAddresses !== null) {
        this.needsClient = true;
        const networks = sourceAddresses.map(networkRow);
        rows.push(row(ConditionKind.SOURCE, 0, 0, 0, this.put(networks), networks.length));
      }
    }
    const place: ConditionPlace = [this.put(rows), rows.length];
    this.places.set(key, place);
    return place;
  }

  /** The section of expressions. */
  expressionSection(): Int32Array {
    const section = new Int32Array(this.expressionWords);
    let at = 0;
    for (const words of this.expressions) {
      section.set(words, at);
      at += words.length;
    }
    return section;
  }

  /** Writes rows one after the other; returns where they begin. */
  private put(rows: number[][]): number {
    const start = this.words.length;
    for (const words of rows) this.words.push(...words);
    return start;
  }

  private textRow(kind: number, value: string): number[] {
    return row(kind, 0, 0, 0, ...this.text.add(value));
  }

  private namedRow(exact: number, expression: number, condition: TextMatchConfig, id: number): number[] {
    const { name, type, value } = condition;
    const place = this.text.add(name);
    return type === 'RegularExpression'
      ? row(expression, ...place, id, this.expression(value))
      : row(exact, ...place, id, ...this.text.add(value));
  }

  /** Position of a compiled pattern in the section of expressions. */
  private expression(pattern: string): number {
    const known = this.patterns.get(pattern);
    if (known !== undefined) return known;
    const { classes, classCount, start, rows } = compileRegex(pattern);
    const words = new Int32Array(DfaRecord.ROWS + rows.length);
    words[DfaRecord.CLASSES] = this.text.addBytes(classes);
    words[DfaRecord.CLASS_COUNT] = classCount;
    words[DfaRecord.START] = start;
    words.set(rows, DfaRecord.ROWS);
    const place = this.expressionWords;
    this.patterns.set(pattern, place);
    this.expressions.push(words);
    this.expressionWords += words.length;
    return place;
  }
}

/** The place of a match in the order of precedence among those with one path: larger numbers first. */
export function precedenceOf({ conditions }: MatchConfig): number[] {
  if (conditions == null) return [0, 0, 0, 0];
  const { grpc, method, headers, queryParams } = conditions;
  // The method of gRPC is part of its path. All its calls are POST.
  return [grpc?.methodLength ?? 0, method !== null || grpc !== null ? 1 : 0, headers.length, queryParams.length];
}

/** Words of a condition, in the order of `Condition`. */
function row(kind: number, nameOffset = 0, nameLength = 0, nameId = 0, value = 0, valueLength = 0): number[] {
  const words: number[] = new Array(Condition.WORDS).fill(0);
  words[Condition.KIND] = kind;
  words[Condition.NAME_OFFSET] = nameOffset;
  words[Condition.NAME_LENGTH] = nameLength;
  words[Condition.NAME_ID] = nameId;
  words[Condition.VALUE] = value;
  words[Condition.VALUE_LENGTH] = valueLength;
  return words;
}

function networkRow(text: string): number[] {
  const network = parseNetwork(text);
  if ('problem' in network) throw new Error(`"${text}" ${network.problem}`);
  const words: number[] = new Array(Network.WORDS).fill(0);
  words[Network.BITS] = network.bits;
  words[Network.VERSION] = network.version;
  for (const [index, word] of network.words.entries()) words[Network.ADDRESS + index] = word;
  return words;
}
