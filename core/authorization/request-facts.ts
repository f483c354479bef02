// What authorisation policies can ask of one request, read from its head where it lies.
//
// Everything that more than one reader could understand differently is compared in every way: the forms of a path,
// and fields that come more than once (each of them, and all joined, as RFC 9110 §5.3 allows). With `lenient`
// one way is enough, otherwise all are needed: rules that deny ask leniently, rules that allow do not, and what must
// not be is asked for the other way round. So an ambiguous request is refused.
// Owned by one worker; one instance serves every request. Hot module: no allocation per request.

import { type HeaderTable, FIELD_WORDS as WORDS } from '../http1/header-table.ts';
import { type RequestHead, TargetForm } from '../http1/message.ts';
import type { PeerAddress } from '../io/connection.ts';
import type { NetworkList } from './network.ts';
import { PathForms } from './path-forms.ts';
import type { PathList } from './path-list.ts';
import type { TextList } from './text-match.ts';

const FIELD_WORDS = WORDS;
const { AUTHORITY } = TargetForm;
const COMMA = 44;
const DOT = 46;

/** Longest joined value that is looked at, bytes. */
const JOINED_BYTES_MAX = 64 * 1024;

const slash = Uint8Array.of(47);
const noMemory = new Uint8Array(0);

export class RequestFacts {
  private memory: Uint8Array = noMemory;
  private head: RequestHead | null = null;
  private pathLoaded = false;
  private readonly path = new PathForms();
  private readonly joined = new Uint8Array(JOINED_BYTES_MAX);
  /** The client behind trusted proxies; null: not known. */
  private remote: PeerAddress | null = null;

  /** Takes a head, which must not move while it is asked about. */
  load(memory: Uint8Array, head: RequestHead, remote: PeerAddress | null): void {
    this.memory = memory;
    this.head = head;
    this.remote = remote;
    this.pathLoaded = false;
  }

  /** Whether the method is in a list. */
  methodIn(list: TextList, lenient: boolean): boolean {
    const { methodOffset, methodLength } = this.head!;
    return list.has(this.memory, methodOffset, methodLength, lenient);
  }

  /** Whether the host is in a list whose values have no port; one that a request does not name is in none. */
  hostIn(list: TextList, lenient: boolean): boolean {
    const { authorityOffset, hostLength } = this.head!;
    if (hostLength === 0) return list.unknown && lenient;
    // `example.com.` is the same host.
    const dots = hostLength > 1 && this.memory[authorityOffset + hostLength - 1] === DOT ? 1 : 0;
    return list.has(this.memory, authorityOffset, hostLength - dots, lenient);
  }

  /** Whether host and port, as the request names them, are in a list. */
  authorityIn(list: TextList, lenient: boolean): boolean {
    const { authorityOffset, authorityLength } = this.head!;
    return list.has(this.memory, authorityOffset, authorityLength, lenient);
  }

  /** Whether the path, without query, is in a list. A CONNECT has none, and is in none. */
  pathIn(list: PathList, lenient: boolean): boolean {
    const { path } = this;
    const head = this.head!;
    if (head.targetForm === AUTHORITY) return false;
    if (!this.pathLoaded) {
      this.pathLoaded = true;
      if (head.pathOnlyLength === 0) path.load(slash, 0, 1);
      else path.load(this.memory, head.pathOffset, head.pathOnlyLength);
    }
    return list.has(path, lenient);
  }

  /** Whether the client's address is in a list of networks. */
  remoteIn(list: NetworkList, lenient: boolean): boolean {
    return list.has(this.remote, lenient);
  }

  /** Whether the value of a field (name in lower case) is in a list; one that is absent is in none. */
  fieldIn(name: Uint8Array, list: TextList, lenient: boolean): boolean {
    const { memory } = this;
    const { headers } = this.head!;
    const first = this.findField(headers, name, 0);
    if (first < 0) return false;
    let next = this.findField(headers, name, first + 1);
    const has = list.has(memory, headers.valueOffset(first), headers.valueLength(first), lenient);
    if (next < 0) return has;
    if (has === lenient) return lenient;
    let length = this.join(headers, first, 0, false);
    while (next >= 0) {
      if (list.has(memory, headers.valueOffset(next), headers.valueLength(next), lenient) === lenient) return lenient;
      length = this.join(headers, next, length, true);
      next = this.findField(headers, name, next + 1);
    }
    if (length < 0) return lenient;
    return list.has(this.joined, 0, length, lenient);
  }

  /** Puts a value behind `length` joined bytes. Returns the new length; -1: too long, then and from then on. */
  private join(headers: HeaderTable, field: number, length: number, comma: boolean): number {
    const { joined, memory } = this;
    const offset = headers.valueOffset(field);
    const bytes = headers.valueLength(field);
    if (length < 0 || length + bytes + 1 > JOINED_BYTES_MAX) return -1;
    let to = length;
    if (comma) joined[to++] = COMMA;
    for (let i = 0; i < bytes; i++) joined[to++] = memory[offset + i]!;
    return to;
  }

  private findField(headers: HeaderTable, name: Uint8Array, from: number): number {
    const { memory } = this;
    const { count, words } = headers;
    for (let field = from; field < count; field++) {
      const word = field * FIELD_WORDS;
      if (words[word + 1] !== name.length) continue;
      const offset = words[word]!;
      let i = 0;
      while (i < name.length && lower(memory[offset + i]!) === name[i]) i++;
      if (i === name.length) return field;
    }
    return -1;
  }
}

function lower(byte: number): number {
  return byte >= 65 && byte <= 90 ? byte | 32 : byte;
}
