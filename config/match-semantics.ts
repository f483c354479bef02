// Checks of matches that look at more than one key: values by their type, conditions that exclude each other.
//
// Control thread. A part of semantics.ts, with its terms: nothing is taken for granted about shapes.
// Spec: Gateway API HTTPRouteMatch, GRPCMethodMatch.

import { regexProblem } from '../core/routing/regex-dfa.ts';
import { describeValue } from './errors.ts';
import { grpcPathPattern } from './match-normalise.ts';
import { isToken, pathProblem } from './names.ts';
import { parseNetwork } from './networks.ts';
import { isMapping, items, type Mapping, mappings, type Report, refuse, unique } from './semantics-walk.ts';
import type { Path } from './yaml.ts';

/** Longest regular expression in characters. */
const PATTERN_LENGTH_MAX = 4096;

/** Reports what is wrong with the matches of all rules. */
export function checkMatches(root: Mapping, report: Report): void {
  // Configurations use few patterns many times, and compiling one takes a while.
  const problems = new Map<string, string | undefined>();
  for (const [route, routePath] of mappings(root.routes, ['routes'])) {
    for (const [rule, rulePath] of mappings(route.rules, [...routePath, 'rules'])) {
      for (const [match, path] of mappings(rule.matches, [...rulePath, 'matches'])) {
        new MatchCheck(report, problems).check(match, path);
      }
    }
  }
}

class MatchCheck {
  private readonly report: Report;
  private readonly problems: Map<string, string | undefined>;

  constructor(report: Report, problems: Map<string, string | undefined>) {
    this.report = report;
    this.problems = problems;
  }

  check(match: Mapping, path: Path): void {
    const { report } = this;
    this.checkPath(match.path, [...path, 'path']);
    if (isMapping(match.grpc)) this.checkGrpc(match, match.grpc, path);
    const fields = new Map<string, Path>();
    for (const [field, at] of mappings(match.headers, [...path, 'headers'])) {
      const { name } = field;
      if (typeof name === 'string' && isToken(name)) {
        unique(fields, name.toLowerCase(), [...at, 'name'], 'the header', 'each header once in a match', report);
      }
      if (this.checkValue(field, at)) continue;
      const problem = typeof field.value === 'string' ? fieldValueProblem(field.value) : undefined;
      if (problem !== undefined) {
        refuse(report, [...at, 'value'], `${describeValue(field.value)} ${problem}`, 'a value that a field can have');
      }
    }
    const parameters = new Map<string, Path>();
    for (const [parameter, at] of mappings(match.queryParams, [...path, 'queryParams'])) {
      const expected = 'each parameter once in a match';
      unique(parameters, parameter.name, [...at, 'name'], 'the query parameter', expected, report);
      this.checkValue(parameter, at);
    }
    if (isMapping(match.clientCertificate)) {
      const at = [...path, 'clientCertificate', 'subjectAltNames'];
      for (const [name, nameAt] of mappings(match.clientCertificate.subjectAltNames, at)) this.checkValue(name, nameAt);
    }
    this.checkSources(match.sourceAddresses, [...path, 'sourceAddresses']);
  }

  private checkPath(path: unknown, at: Path): void {
    if (!isMapping(path)) return;
    const { report } = this;
    const { type = 'PathPrefix', value } = path;
    if (type === 'RegularExpression' && value === undefined) {
      refuse(report, at, 'key "value" is missing', 'a regular expression such as /v[0-9]+/.*');
    } else if (type === 'RegularExpression') {
      this.checkPattern(value, [...at, 'value']);
    } else if ((type === 'Exact' || type === 'PathPrefix') && typeof value === 'string') {
      const problem = pathProblem(value);
      if (problem === undefined) return;
      const guess = `/${value.replace(/^\/+/, '').replace(/[?#*].*$/, '')}`;
      const hint = guess !== value && pathProblem(guess) === undefined ? guess : undefined;
      refuse(report, [...at, 'value'], `${describeValue(value)} ${problem}`, 'a path such as /cart', hint);
    }
  }

  private checkGrpc(match: Mapping, grpc: Mapping, path: Path): void {
    const { report } = this;
    for (const key of ['path', 'method']) {
      if (match[key] === undefined) continue;
      const problem = 'cannot stand beside grpc, which says path and method itself';
      refuse(report, [...path, key], problem, 'grpc with service and method, or path and method', undefined, 'key');
    }
    const { type = 'Exact', service, method } = grpc;
    const at = [...path, 'grpc'];
    if (type === 'RegularExpression') {
      const wrong = [
        this.checkPattern(service, [...at, 'service']),
        this.checkPattern(method, [...at, 'method']),
      ].includes(true);
      if (wrong || (typeof service !== 'string' && typeof method !== 'string')) return;
      // Each may be small enough, and both together not.
      const pattern = grpcPathPattern(textOf(service), textOf(method));
      const problem = this.problemOf(pattern);
      if (problem === undefined) return;
      refuse(report, at, `service and method make ${describeValue(pattern)}, which ${problem}`, 'shorter ones');
    } else if (type === 'Exact') {
      if (typeof service === 'string' && service !== '' && !/^\.?[A-Za-z_]\w*(\.[A-Za-z_]\w*)*$/.test(service)) {
        const problem = `${describeValue(service)} is not the name of a service`;
        refuse(report, [...at, 'service'], problem, 'a name such as shop.v1.Cart');
      }
      if (typeof method === 'string' && method !== '' && !/^[A-Za-z_]\w*$/.test(method)) {
        const problem = `${describeValue(method)} is not the name of a method`;
        refuse(report, [...at, 'method'], problem, 'a name such as AddItem');
      }
    }
  }

  /** Checks a value whose type says that it is a regular expression; returns whether it does. */
  private checkValue(condition: Mapping, at: Path): boolean {
    if (condition.type !== 'RegularExpression') return false;
    this.checkPattern(condition.value, [...at, 'value']);
    return true;
  }

  /** Reports a text that is no usable pattern; returns whether it has. */
  private checkPattern(pattern: unknown, at: Path): boolean {
    // Empty ones have been reported, except where a path may be anything.
    if (typeof pattern !== 'string' || (pattern === '' && at[at.length - 2] !== 'path')) return false;
    const problem = this.problemOf(pattern);
    if (problem === undefined) return false;
    refuse(this.report, at, `${describeValue(pattern)} ${problem}`, 'a regular expression in RE2 syntax');
    return true;
  }

  private problemOf(pattern: string): string | undefined {
    if (pattern === '') return 'is empty';
    if (/[\x00-\x1f\x7f]/.test(pattern)) return 'has a control character, which is written \\x01 and the like';
    if (pattern.length > PATTERN_LENGTH_MAX) return `is longer than ${PATTERN_LENGTH_MAX} characters`;
    if (!this.problems.has(pattern)) this.problems.set(pattern, regexProblem(pattern));
    return this.problems.get(pattern);
  }

  private checkSources(sources: unknown, path: Path): void {
    const seen = new Map<string, Path>();
    for (const [source, at] of items(sources, path)) {
      if (typeof source !== 'string') continue;
      const network = parseNetwork(source);
      if ('problem' in network) {
        const expected = 'an address such as 10.0.0.1, or a network such as 10.0.0.0/8';
        refuse(this.report, at, `${describeValue(source)} ${network.problem}`, expected, network.hint);
      } else {
        unique(seen, source, at, 'the network', 'each network once', this.report);
      }
    }
  }
}

function textOf(value: unknown): string | null {
  return typeof value === 'string' ? value : null;
}

/** What keeps a text from ever being the value of a field (RFC 9110 §5.5). */
function fieldValueProblem(value: string): string | undefined {
  return /^[ \t]|[ \t]$/.test(value) ? 'has spaces at an end, which field values never have' : undefined;
}
