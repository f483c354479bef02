// From the bytes of a file to text: what is no text is found here, with its place, before a YAML reader
// makes something strange of it.
//
// Control thread. Spec: YAML 1.2.2 §5.1 (character set), §5.2 (encodings; only UTF-8 is taken).

import type { Finding } from './errors.ts';

/** Characters that a YAML file cannot hold: control characters other than tab, line feed and carriage return. */
const NOT_TEXT = /[\x00-\x08\x0b\x0c\x0e-\x1f\x7f\x80-\x84\x86-\x9f\ufffe\uffff]/;

const REPLACEMENT = '\ufffd';

/**
 * Decodes UTF-8, without a byte order mark. With bytes that are no UTF-8, `finding` says where, and
 * `text` is only good for finding lines and columns.
 */
export function decodeText(bytes: Uint8Array): { text: string; finding?: Finding } {
  const expected = 'a YAML file in UTF-8';
  const [first, second] = bytes;
  if ((first === 0xff && second === 0xfe) || (first === 0xfe && second === 0xff)) {
    return { text: '', finding: { offset: 0, problem: 'the file is UTF-16, not UTF-8', expected } };
  }
  const text = new TextDecoder().decode(bytes);
  const mark = first === 0xef && second === 0xbb ? 3 : 0;
  let byte = mark;
  let from = 0;
  for (let at = text.indexOf(REPLACEMENT); at >= 0; at = text.indexOf(REPLACEMENT, at + 1)) {
    byte += Buffer.byteLength(text.slice(from, at));
    from = at;
    // The replacement character itself is valid where it was written as such.
    if (bytes[byte] === 0xef && bytes[byte + 1] === 0xbf && bytes[byte + 2] === 0xbd) continue;
    const problem = `the file is not UTF-8: the byte 0x${hex(bytes[byte]!)} here is no part of a character`;
    return { text, finding: { offset: at, problem, expected } };
  }
  return { text };
}

/** The first character that no YAML file can hold, as a finding; undefined when there is none. */
export function findNonText(text: string): Finding | undefined {
  const match = NOT_TEXT.exec(text);
  if (match === null) return undefined;
  const code = match[0].charCodeAt(0);
  const problem = `the file is not text: it holds the control character U+${hex(code).padStart(4, '0')} here`;
  return { offset: match.index, problem, expected: 'a YAML file in UTF-8' };
}

function hex(number: number): string {
  return number.toString(16).toUpperCase().padStart(2, '0');
}
