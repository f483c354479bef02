// Finds the rule for a request in the compiled route table, and reads what the rule says.
//
// Hot module: `lookup` and the numeric accessors run once per request and allocate nothing. The
// cost of a lookup depends on the length of host and path, bounded by the longest ones configured,
// and not on the number of routes: one pass over the host from its end, one over the path from its
// start, each collecting the hash at every boundary, then one probe per boundary that can match.
// Rules that share host and path, and a host's regular expressions, are tried one after the other.
// Owned by one worker (it has scratch memory); the buffer is shared by all and never written.
// Precedence: Gateway API, HTTPRouteRule.matches and HTTPRouteSpec.hostnames.

import { RouteConditions } from './route-conditions.ts';
import { HASH_SEED, hashByte, hashMix, hashPathKey, lowerByte } from './route-hash.ts';
import type { RouteRequest } from './route-request.ts';
import {
  Candidate,
  Header,
  Host,
  Path,
  PathKind,
  Ref,
  ROUTE_TABLE_MAGIC,
  ROUTE_TABLE_VERSION,
  Route,
  Rule,
  RuleFlag,
  Slot,
} from './route-table-format.ts';

const SLASH = 47;
const DOT = 46;

/** What a search for a hostname gives that is not there. */
const NO_HOST = 0;

/** Reader over one compiled table. */
export class RouteTable {
  /** Number of rules; rule indexes are 0 to `ruleCount - 1`, in file order. */
  readonly ruleCount: number;
  /** Some rule asks for the client's address: `lookup` needs `RouteRequest.client`. */
  readonly needsClient: boolean;

  private readonly conditions: RouteConditions;
  private readonly words: Int32Array;
  private readonly bytes: Uint8Array;
  private readonly rules: number;
  private readonly refs: number;
  private readonly hosts: number;
  private readonly hostSlots: number;
  private readonly hostSlotMask: number;
  private readonly paths: number;
  private readonly pathSlots: number;
  private readonly pathSlotMask: number;
  private readonly candidates: number;
  private readonly listenerSets: number;
  private readonly listenerHosts: number;
  private readonly listenerSetWords: number;
  private readonly hostBytesMax: number;
  private readonly hostDotsMax: number;
  private readonly pathBytesMax: number;
  private readonly prefixDepthMax: number;

  /** Hash and length of the host's suffixes that start at a dot, shortest first. */
  private readonly suffixHashes: Int32Array;
  private readonly suffixLengths: Int32Array;
  /** Hash and length of the path's first n elements, at index n. Index 0 is the empty prefix. */
  private readonly prefixHashes: Int32Array;
  private readonly prefixLengths: Int32Array;

  /** Throws when `buffer` is not a route table of this version. */
  constructor(buffer: SharedArrayBuffer) {
    const words = new Int32Array(buffer, 0, buffer.byteLength >> 2);
    if (words.length < Header.WORDS || words[Header.MAGIC] !== ROUTE_TABLE_MAGIC) {
      throw new Error('not a compiled route table');
    }
    if (words[Header.VERSION] !== ROUTE_TABLE_VERSION) {
      throw new Error(`route table has version ${words[Header.VERSION]}, expected ${ROUTE_TABLE_VERSION}`);
    }
    this.words = words;
    this.bytes = new Uint8Array(buffer, words[Header.BYTES]!, words[Header.BYTE_COUNT]!);
    this.ruleCount = words[Header.RULE_COUNT]!;
    this.rules = words[Header.RULES]!;
    this.refs = words[Header.REFS]!;
    this.hosts = words[Header.HOSTS]!;
    this.hostSlots = words[Header.HOST_SLOTS]!;
    this.hostSlotMask = words[Header.HOST_SLOT_MASK]!;
    this.paths = words[Header.PATHS]!;
    this.pathSlots = words[Header.PATH_SLOTS]!;
    this.pathSlotMask = words[Header.PATH_SLOT_MASK]!;
    this.candidates = words[Header.CANDIDATES]!;
    this.listenerSets = words[Header.LISTENER_SETS]!;
    this.listenerHosts = words[Header.LISTENER_HOSTS]!;
    this.listenerSetWords = words[Header.LISTENER_SET_WORDS]!;
    this.hostBytesMax = words[Header.HOST_BYTES_MAX]!;
    this.hostDotsMax = words[Header.HOST_DOTS_MAX]!;
    this.pathBytesMax = words[Header.PATH_BYTES_MAX]!;
    this.prefixDepthMax = words[Header.PREFIX_DEPTH_MAX]!;
    this.needsClient = words[Header.NEEDS_CLIENT] === 1;
    this.conditions = new RouteConditions(words, this.bytes);
    this.suffixHashes = new Int32Array(this.hostDotsMax);
    this.suffixLengths = new Int32Array(this.hostDotsMax);
    this.prefixHashes = new Int32Array(this.prefixDepthMax + 1);
    this.prefixLengths = new Int32Array(this.prefixDepthMax + 1);
    this.prefixHashes[0] = HASH_SEED;
  }

  // -- lookup ------------------------------------------------------------------

  /** The rule for a request, or -1. */
  lookup(request: RouteRequest): number {
    const { memory, hostOffset, pathOffset, pathLength } = request;
    let hostLength = request.hostLength;
    // Path pass. An element ends before a slash and at the end of the path.
    const prefixDepthMax = this.prefixDepthMax;
    const pathBytesMax = this.pathBytesMax;
    let pathHash = HASH_SEED;
    let depth = 0;
    for (let i = 0; ; i++) {
      const atEnd = i === pathLength;
      const byte = atEnd ? SLASH : memory[pathOffset + i]!;
      if (byte === SLASH && i > 0 && depth < prefixDepthMax) {
        depth++;
        this.prefixHashes[depth] = pathHash;
        this.prefixLengths[depth] = i;
      }
      if (atEnd || i === pathBytesMax) break;
      pathHash = hashByte(pathHash, byte);
    }
    if (pathLength === 0) pathHash = hashByte(HASH_SEED, SLASH);

    // Host pass, from the end, because wildcards name the end. A fully qualified name may end in a
    // dot, which says nothing about the route.
    if (hostLength > 0 && memory[hostOffset + hostLength - 1] === DOT) hostLength--;
    const hostBytes = Math.min(hostLength, this.hostBytesMax);
    let hostHash = HASH_SEED;
    let dots = 0;
    for (let i = 1; i <= hostBytes; i++) {
      const byte = lowerByte(memory[hostOffset + hostLength - i]!);
      hostHash = hashByte(hostHash, byte);
      // A wildcard needs at least one byte before its dot.
      if (byte === DOT && i < hostLength && dots < this.hostDotsMax) {
        this.suffixHashes[dots] = hostHash;
        this.suffixLengths[dots] = i;
        dots++;
      }
    }

    // Most specific hostname first; one without a matching path gives way to the next.
    // A key that starts with a dot is a wildcard's, and no exact hostname.
    if (hostLength > 0 && hostBytes === hostLength && memory[hostOffset] !== DOT) {
      const host = this.findHost(memory, hostOffset, hostLength, hostHash);
      if (host > 0) {
        const rule = this.matchPath(request, host, pathHash, depth);
        if (rule >= 0) return rule;
      }
    }
    while (dots > 0) {
      dots--;
      const length = this.suffixLengths[dots]!;
      const host = this.findHost(memory, hostOffset + hostLength - length, length, this.suffixHashes[dots]!);
      if (host > 0) {
        const rule = this.matchPath(request, host, pathHash, depth);
        if (rule >= 0) return rule;
      }
    }
    return this.matchPath(request, this.words[this.listenerHosts + 1 + request.listener]!, pathHash, depth);
  }

  /** Index of the host with this key, or 0. */
  private findHost(memory: Uint8Array, offset: number, length: number, hash: number): number {
    const words = this.words;
    const mixed = hashMix(hash);
    for (let slot = mixed & this.hostSlotMask; ; slot = (slot + 1) & this.hostSlotMask) {
      const at = this.hostSlots + slot * Slot.WORDS;
      const entry = words[at + Slot.ENTRY]!;
      // Half of the slots are free, so the walk ends.
      if (entry === 0) return NO_HOST;
      if (words[at + Slot.HASH] !== mixed) continue;
      const host = this.hosts + (entry - 1) * Host.WORDS;
      if (words[host + Host.KEY_LENGTH] !== length) continue;
      const key = words[host + Host.KEY_OFFSET]!;
      let i = 0;
      while (i < length && this.bytes[key + i] === lowerByte(memory[offset + i]!)) i++;
      if (i === length) return entry - 1;
    }
  }

  /** The winning rule among one host's paths: Exact, regular expressions, the longest prefix; or -1. */
  private matchPath(request: RouteRequest, host: number, exactHash: number, depth: number): number {
    const words = this.words;
    const { pathOffset, pathLength } = request;
    const at = this.hosts + host * Host.WORDS;
    request.prefixLength = -1;
    // A path longer than every key has no Exact entry; its hash covers only a part of it.
    if (words[at + Host.HAS_EXACT] !== 0 && pathLength <= this.pathBytesMax) {
      const length = pathLength === 0 ? 1 : pathLength;
      const offset = pathLength === 0 ? -1 : pathOffset;
      const rule = this.findRule(request, host, PathKind.EXACT, offset, length, exactHash);
      if (rule >= 0) return rule;
    }
    const expressions = words[at + Host.EXPRESSIONS]!;
    if (expressions >= 0) {
      const rule = this.firstCandidate(request, this.paths + expressions * Path.WORDS);
      if (rule >= 0) return rule;
    }
    const depths = words[at + Host.PREFIX_DEPTHS]!;
    for (let d = depth; d >= 0; d--) {
      if ((depths & (1 << Math.min(d, 31))) === 0) continue;
      const length = this.prefixLengths[d]!;
      const rule = this.findRule(request, host, PathKind.PREFIX, pathOffset, length, this.prefixHashes[d]!);
      if (rule >= 0) {
        request.prefixLength = length;
        return rule;
      }
    }
    return -1;
  }

  /** First rule of the path entry with this key whose conditions hold; or -1. */
  private findRule(
    request: RouteRequest,
    host: number,
    kind: number,
    offset: number,
    length: number,
    hash: number,
  ): number {
    const words = this.words;
    const { memory } = request;
    const mixed = hashPathKey(hash, host, kind);
    for (let slot = mixed & this.pathSlotMask; ; slot = (slot + 1) & this.pathSlotMask) {
      const at = this.pathSlots + slot * Slot.WORDS;
      const entry = words[at + Slot.ENTRY]!;
      if (entry === 0) return -1;
      if (words[at + Slot.HASH] !== mixed) continue;
      const path = this.paths + (entry - 1) * Path.WORDS;
      if (
        words[path + Path.KEY_LENGTH] !== length ||
        words[path + Path.HOST] !== host ||
        words[path + Path.KIND] !== kind
      ) {
        continue;
      }
      // Offset -1 stands for an empty path, meaning "/": the only key of one byte.
      if (offset >= 0) {
        const key = words[path + Path.KEY_OFFSET]!;
        let i = 0;
        while (i < length && this.bytes[key + i] === memory[offset + i]) i++;
        if (i < length) continue;
      }
      return this.firstCandidate(request, path);
    }
  }

  /** Rule of the first candidate of a path entry (its position in words) whose conditions hold, or -1. */
  private firstCandidate(request: RouteRequest, path: number): number {
    const words = this.words;
    const { listener } = request;
    const start = words[path + Path.CANDIDATE_START]!;
    const end = start + words[path + Path.CANDIDATE_COUNT]!;
    for (let i = start; i < end; i++) {
      const candidate = this.candidates + i * Candidate.WORDS;
      const set = words[candidate + Candidate.LISTENER_SET]!;
      if (set >= 0) {
        const word = words[this.listenerSets + set * this.listenerSetWords + (listener >>> 5)]!;
        if ((word & (1 << (listener & 31))) === 0) continue;
      }
      const count = words[candidate + Candidate.CONDITION_COUNT]!;
      if (count !== 0 && !this.conditions.hold(request, words[candidate + Candidate.CONDITION_START]!, count)) continue;
      return words[candidate + Candidate.RULE]!;
    }
    return -1;
  }

  // -- what a rule says --------------------------------------------------------

  /** Time for the whole request in milliseconds; 0: no limit. */
  requestTimeoutMs(rule: number): number {
    return this.words[this.rules + rule * Rule.WORDS + Rule.REQUEST_TIMEOUT_MS]!;
  }

  /** Time for one attempt at a backend in milliseconds; 0: no limit. */
  backendRequestTimeoutMs(rule: number): number {
    return this.words[this.rules + rule * Rule.WORDS + Rule.BACKEND_REQUEST_TIMEOUT_MS]!;
  }

  /** Whether gRPC-Web is translated to gRPC. */
  grpcWeb(rule: number): boolean {
    return (this.words[this.rules + rule * Rule.WORDS + Rule.FLAGS]! & RuleFlag.GRPC_WEB) !== 0;
  }

  /** Number of backend references, 1 or more. */
  backendRefCount(rule: number): number {
    return this.words[this.rules + rule * Rule.WORDS + Rule.REF_COUNT]!;
  }

  /** Index in `Snapshot.backends` of the rule's backend reference `i`. */
  backendRefIndex(rule: number, i: number): number {
    return this.words[this.refWord(rule, i) + Ref.BACKEND]!;
  }

  /** Weight of the rule's backend reference `i`, 0 to 1,000,000. */
  backendRefWeight(rule: number, i: number): number {
    return this.words[this.refWord(rule, i) + Ref.WEIGHT]!;
  }

  /** Sum of the weights of the rule's backend references, 1 or more. */
  backendRefWeightTotal(rule: number): number {
    return this.words[this.rules + rule * Rule.WORDS + Rule.WEIGHT_TOTAL]!;
  }

  /** Index in `Snapshot.rulePolicies` of what else the rule says, or -1. */
  policy(rule: number): number {
    return this.words[this.rules + rule * Rule.WORDS + Rule.POLICY]!;
  }

  /** Index in `Snapshot.refPolicies` of what else the rule's backend reference `i` says, or -1. */
  backendRefPolicy(rule: number, i: number): number {
    return this.words[this.refWord(rule, i) + Ref.POLICY]!;
  }

  private refWord(rule: number, i: number): number {
    return this.refs + (this.words[this.rules + rule * Rule.WORDS + Rule.REF_START]! + i) * Ref.WORDS;
  }

  /** Name of the route a rule belongs to. Makes a string: not for the packet path. */
  routeName(rule: number): string {
    const route = this.words[this.rules + rule * Rule.WORDS + Rule.ROUTE]!;
    const at = this.words[Header.ROUTES]! + route * Route.WORDS;
    const offset = this.words[at + Route.NAME_OFFSET]!;
    // TextDecoder refuses shared memory; slice copies.
    return new TextDecoder().decode(this.bytes.slice(offset, offset + this.words[at + Route.NAME_LENGTH]!));
  }

  /** Route name and rule number, such as "shop rule 2". Makes a string: not for the packet path. */
  ruleLabel(rule: number): string {
    return `${this.routeName(rule)} rule ${this.words[this.rules + rule * Rule.WORDS + Rule.NUMBER]}`;
  }
}
