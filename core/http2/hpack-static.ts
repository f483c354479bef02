// The static table of HPACK as text lines and records, laid out like the entries of a dynamic table.
//
// A decoder copies `name: value\r\n` from here with one loop, and reads name length, value length
// and field id without looking at the text. Immutable after load. Hot modules read it.
// Spec: RFC 7541 Appendix A.

import { headerNames } from '../http1/header-ids.ts';
import { PSEUDO_FIRST, pseudoNames } from './pseudo-ids.ts';

/** Entries of the static table by index; index 0 is not used. */
export const staticEntries: readonly (readonly [name: string, value: string])[] = [
  ['', ''],
  [':authority', ''],
  [':method', 'GET'],
  [':method', 'POST'],
  [':path', '/'],
  [':path', '/index.html'],
  [':scheme', 'http'],
  [':scheme', 'https'],
  [':status', '200'],
  [':status', '204'],
  [':status', '206'],
  [':status', '304'],
  [':status', '400'],
  [':status', '404'],
  [':status', '500'],
  ['accept-charset', ''],
  ['accept-encoding', 'gzip, deflate'],
  ['accept-language', ''],
  ['accept-ranges', ''],
  ['accept', ''],
  ['access-control-allow-origin', ''],
  ['age', ''],
  ['allow', ''],
  ['authorization', ''],
  ['cache-control', ''],
  ['content-disposition', ''],
  ['content-encoding', ''],
  ['content-language', ''],
  ['content-length', ''],
  ['content-location', ''],
  ['content-range', ''],
  ['content-type', ''],
  ['cookie', ''],
  ['date', ''],
  ['etag', ''],
  ['expect', ''],
  ['expires', ''],
  ['from', ''],
  ['host', ''],
  ['if-match', ''],
  ['if-modified-since', ''],
  ['if-none-match', ''],
  ['if-range', ''],
  ['if-unmodified-since', ''],
  ['last-modified', ''],
  ['link', ''],
  ['location', ''],
  ['max-forwards', ''],
  ['proxy-authenticate', ''],
  ['proxy-authorization', ''],
  ['range', ''],
  ['referer', ''],
  ['refresh', ''],
  ['retry-after', ''],
  ['server', ''],
  ['set-cookie', ''],
  ['strict-transport-security', ''],
  ['transfer-encoding', ''],
  ['user-agent', ''],
  ['vary', ''],
  ['via', ''],
  ['www-authenticate', ''],
];

/** Entries in the static table; the first dynamic entry has the next index. */
export const STATIC_COUNT = 61;

/** Words per entry record, here and in a decoder's dynamic table. */
export const RECORD_WORDS = 3;

/** Known-header or pseudo-header id of a lower-case name; 0 for others. For module load and tests. */
export function idOfName(name: string): number {
  const pseudo = pseudoNames.indexOf(name);
  return pseudo >= 0 ? PSEUDO_FIRST + pseudo : Math.max(0, headerNames.indexOf(name));
}

/** Bytes that readers may load beyond the text, because they copy eight at a time. */
const SLACK_BYTES = 8;

const lines = staticEntries.map(([name, value]) => `${name}: ${value}\r\n`);
const text = Buffer.from(lines.join('') + '\0'.repeat(SLACK_BYTES), 'latin1');

/** The lines of all entries. */
export const staticView: DataView = new DataView(new ArrayBuffer(text.length));
new Uint8Array(staticView.buffer).set(text);

/** RECORD_WORDS words per index: offset of the line; name length << 16 | value length; id. */
export const staticRecords: Int32Array = new Int32Array((STATIC_COUNT + 1) * RECORD_WORDS);

let offset = 0;
for (let index = 0; index <= STATIC_COUNT; index++) {
  const [name, value] = staticEntries[index];
  staticRecords[index * RECORD_WORDS] = offset;
  staticRecords[index * RECORD_WORDS + 1] = (name.length << 16) | value.length;
  staticRecords[index * RECORD_WORDS + 2] = idOfName(name);
  offset += lines[index].length;
}
