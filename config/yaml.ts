// Reads YAML into plain values, and finds the place in the text of any of them again.
//
// Control thread. Only what a configuration needs: one document, text keys, no tags, no merge keys;
// aliases, within a bound. Places are looked up only when there is an error to report.
// Invariant: all mistakes are collected; a value that could not be read is BROKEN, and later checks
// say nothing more about it.
// Spec: YAML 1.2.2, core schema (§10.3).

import {
  type Alias,
  Composer,
  type CST,
  type Document,
  isAlias,
  isMap,
  isScalar,
  isSeq,
  Lexer,
  type Node,
  type Pair,
  Parser,
  Scalar,
  type YAMLMap,
  YAMLParseError,
} from 'yaml';
import { type Environment, mentionsVariable, plainScalarValue, substitute } from './env.ts';
import type { Finding } from './errors.ts';
import { findNonText } from './text.ts';
import { syntaxFindings } from './yaml-errors.ts';

/** Stands for a value that has been reported already. */
export const BROKEN: unique symbol = Symbol('broken value');

/** Keys and indexes from the root to a value. */
export type Path = readonly (string | number)[];

/** What was read. */
export interface YamlResult {
  /** Plain objects, arrays, strings, numbers, booleans, null, BROKEN; undefined when the text is not YAML. */
  value: unknown;
  findings: Finding[];
  /** Offset of a value, or of the key it stands under; of the nearest enclosing value if there is none. */
  locate(path: Path, part: 'key' | 'value'): number;
}

/** Deepest nesting; the schema itself needs less than ten levels. */
const DEPTH_MAX = 64;

const TOO_DEEP = `values are nested more than ${DEPTH_MAX} levels deep`;
const LESS_DEEP = 'the few levels that a configuration has';

/**
 * Deepest stack of the package's parser; a level takes up to three entries. What passes it is far
 * over DEPTH_MAX; what does not is measured exactly by the reader.
 */
const PARSER_STACK_MAX = 4 * DEPTH_MAX;

/** Most values that aliases may add to a document, so that a few lines cannot stand for billions. */
const ALIASED_VALUES_MAX = 100_000;

/** Reads one document and substitutes environment variables in its values. */
export function readYaml(text: string, env: Environment): YamlResult {
  const unreadable = (findings: Finding[]): YamlResult => ({ value: undefined, findings, locate: () => 0 });
  const nonText = findNonText(text);
  if (nonText !== undefined) return unreadable([nonText]);
  const document = parse(text);
  if ('tooDeepAt' in document) {
    return unreadable([{ offset: document.tooDeepAt, problem: TOO_DEEP, expected: LESS_DEEP }]);
  }
  if (document.errors.length > 0) return unreadable(syntaxFindings(document, text));
  const reader = new Reader(text, env);
  const value = document.contents === null ? null : reader.read(document.contents, 0);
  return {
    value,
    findings: reader.findings,
    locate: (path, part) => locate(document.contents, path, part, reader.targets),
  };
}

/**
 * The document of a text, or the place where it is nested too deeply. The package's own way builds
 * nodes recursively; its lexer and parser do not, so depth is watched there, before that happens.
 */
function parse(text: string): Document.Parsed | { tooDeepAt: number } {
  const parser = new Parser();
  const tokens: CST.Token[] = [];
  for (const lexeme of new Lexer().lex(text)) {
    for (const token of parser.next(lexeme)) tokens.push(token);
    if (parser.stack.length > PARSER_STACK_MAX) return { tooDeepAt: parser.offset - lexeme.length };
  }
  tokens.push(...parser.end());
  // With its tokens a node shows which bracket is not closed; they are held anyway.
  const options = { prettyErrors: false, uniqueKeys: false, logLevel: 'error', keepSourceTokens: true } as const;
  const composer = new Composer(options);
  const [document, second] = composer.compose(tokens, true, text.length);
  if (second !== undefined) {
    document!.errors.push(new YAMLParseError([second.range[0], second.range[1]], 'MULTIPLE_DOCS', 'second document'));
  }
  return document as Document.Parsed;
}

/** Turns nodes into values. */
class Reader {
  readonly findings: Finding[] = [];
  /** Node that each alias stands for. */
  readonly targets = new Map<Alias, Node>();
  private readonly anchors = new Map<string, Node>();
  /** Nodes being read now: an alias to one of them would never end. */
  private readonly open = new Set<Node>();
  private aliasDepth = 0;
  private aliasedValues = 0;
  private aliasesExhausted = false;
  private readonly text: string;
  private readonly env: Environment;

  constructor(text: string, env: Environment) {
    this.text = text;
    this.env = env;
  }

  read(node: Node, depth: number): unknown {
    if (this.aliasDepth > 0 && ++this.aliasedValues > ALIASED_VALUES_MAX) return BROKEN;
    if (depth > DEPTH_MAX) return this.broken(node, TOO_DEEP, LESS_DEEP);
    if (isAlias(node)) return this.readAlias(node, depth);
    if (node.tag !== undefined) {
      return this.broken(node, `the tag ${node.tag} is not supported`, 'a value without a tag');
    }
    if ('anchor' in node && node.anchor !== undefined) this.anchors.set(node.anchor, node);
    if (isScalar(node)) return this.readScalar(node);
    this.open.add(node);
    let value: unknown = BROKEN;
    if (isSeq(node)) value = node.items.map((item) => this.read(item as Node, depth + 1));
    else if (isMap(node)) value = this.readMap(node, depth);
    this.open.delete(node);
    return value;
  }

  private readMap(map: YAMLMap, depth: number): unknown {
    const object: Record<string, unknown> = {};
    for (const pair of map.items as Pair<Node, Node | null>[]) {
      const key = pair.key;
      if (!isScalar(key) || keyText(key) === '') {
        this.broken(key, 'a key is not plain text');
        continue;
      }
      const name = keyText(key);
      if (name === '<<') {
        this.broken(key, 'merge keys ("<<") are not part of YAML 1.2', 'the keys themselves');
      } else if (name === '__proto__') {
        this.broken(key, 'unknown key "__proto__"');
      } else if (Object.hasOwn(object, name)) {
        this.broken(key, `key ${JSON.stringify(name)} is given twice`, 'each key once');
      } else {
        object[name] = pair.value === null ? null : this.read(pair.value, depth + 1);
      }
    }
    return object;
  }

  private readAlias(alias: Alias, depth: number): unknown {
    const target = this.anchors.get(alias.source);
    if (target === undefined) {
      if (alias.source.startsWith('.')) {
        const hint = JSON.stringify(`*${alias.source}`);
        return this.broken(alias, 'a value cannot start with "*" without quotes', 'quotes around it', hint);
      }
      return this.broken(alias, `alias *${alias.source} has no anchor before it`, `&${alias.source} further up`);
    }
    if (this.open.has(target)) return this.broken(alias, `alias *${alias.source} contains itself`);
    this.targets.set(alias, target);
    this.aliasDepth++;
    const value = this.read(target, depth);
    this.aliasDepth--;
    if (this.aliasedValues <= ALIASED_VALUES_MAX) return value;
    // Said once, about the outermost alias; from here on every alias is BROKEN.
    if (this.aliasDepth === 0 && !this.aliasesExhausted) {
      this.aliasesExhausted = true;
      this.broken(alias, `aliases stand for more than ${ALIASED_VALUES_MAX} values`);
    }
    return BROKEN;
  }

  private readScalar(scalar: Scalar): unknown {
    const plain = scalar.type === Scalar.PLAIN;
    const source = scalar.source ?? '';
    if (!mentionsVariable(source)) return plain ? plainScalarValue(source) : source;
    const [start, end] = scalar.range!;
    let searchFrom = start;
    const result = substitute(source, this.env, (piece, finding) => {
      // A piece that escapes or folding changed is not found as it is; the scalar's start is near enough.
      const at = this.text.indexOf(piece, searchFrom);
      const found = at >= 0 && at < end;
      if (found) searchFrom = at + piece.length;
      this.findings.push({ offset: found ? at : start, ...finding });
    });
    if (result === undefined) return BROKEN;
    return plain ? plainScalarValue(result) : result;
  }

  private broken(node: Node | null, problem: string, expected?: string, hint?: string): typeof BROKEN {
    this.findings.push({ offset: node?.range?.[0] ?? 0, problem, expected, hint });
    return BROKEN;
  }
}

/** Text of a key; keys are text whatever they look like. */
function keyText(key: Scalar): string {
  return key.source ?? String(key.value ?? '');
}

function locate(root: Node | null, path: Path, part: 'key' | 'value', targets: Map<Alias, Node>): number {
  let node: Node | null = root;
  let offset = node?.range?.[0] ?? 0;
  for (let i = 0; i < path.length; i++) {
    const step = path[i]!;
    if (isAlias(node)) node = targets.get(node) ?? null;
    if (isSeq(node)) {
      node = (node.items[step as number] ?? null) as Node | null;
    } else if (isMap(node)) {
      const pairs = node.items as Pair<Node, Node | null>[];
      const pair = pairs.find(({ key }) => isScalar(key) && keyText(key) === step);
      if (pair === undefined) return offset;
      const keyOffset = pair.key.range![0];
      if (i === path.length - 1 && part === 'key') return keyOffset;
      node = pair.value;
      // An empty value has its place right after the colon, where nobody would look for it.
      offset = node === null || (isScalar(node) && node.source === '') ? keyOffset : node.range![0];
      continue;
    } else {
      return offset;
    }
    if (node === null) return offset;
    offset = node.range![0];
  }
  return offset;
}
