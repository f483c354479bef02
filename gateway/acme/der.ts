// The few DER forms that certificate requests and challenge certificates are made of (X.690).
//
// `node:crypto` signs and parses, but builds neither. Definite lengths only, as DER demands.
// Control thread only.

/** Tags of the types in use, with the constructed bit where it belongs. */
export const Tag = {
  BOOLEAN: 0x01,
  INTEGER: 0x02,
  BIT_STRING: 0x03,
  OCTET_STRING: 0x04,
  OID: 0x06,
  UTF8_STRING: 0x0c,
  UTC_TIME: 0x17,
  GENERALIZED_TIME: 0x18,
  SEQUENCE: 0x30,
  SET: 0x31,
} as const;

/** One element: its tag and where its content lies in the bytes it was read from. */
export interface DerElement {
  tag: number;
  content: Uint8Array;
}

/** An element of the given tag around its parts. */
export function der(tag: number, ...parts: Uint8Array[]): Uint8Array {
  const content = Buffer.concat(parts);
  return Buffer.concat([Uint8Array.of(tag), derLength(content.length), content]);
}

/** A SEQUENCE of the parts. */
export function sequence(...parts: Uint8Array[]): Uint8Array {
  return der(Tag.SEQUENCE, ...parts);
}

/** An OBJECT IDENTIFIER from its dotted form. */
export function oid(dotted: string): Uint8Array {
  const [first, second, ...rest] = dotted.split('.').map(Number);
  const bytes = [first! * 40 + second!];
  for (const arc of rest) {
    const groups = [arc & 0x7f];
    for (let value = Math.floor(arc / 128); value > 0; value = Math.floor(value / 128)) {
      groups.unshift((value & 0x7f) | 0x80);
    }
    bytes.push(...groups);
  }
  return der(Tag.OID, Uint8Array.from(bytes));
}

/** A non-negative INTEGER from its big-endian bytes; superfluous zeros are dropped. */
export function integer(bytes: Uint8Array): Uint8Array {
  let start = 0;
  while (start < bytes.length - 1 && bytes[start] === 0) start++;
  const digits = bytes.subarray(start);
  // A set high bit would make it negative.
  return digits[0]! >= 0x80 ? der(Tag.INTEGER, Uint8Array.of(0), digits) : der(Tag.INTEGER, digits);
}

/** A BIT STRING of whole bytes. */
export function bitString(bytes: Uint8Array): Uint8Array {
  return der(Tag.BIT_STRING, Uint8Array.of(0), bytes);
}

/** A point in time as certificates write it: UTCTime until 2049, GeneralizedTime after (RFC 5280 §4.1.2.5). */
export function time(timeMs: number): Uint8Array {
  const digits = new Date(timeMs).toISOString().replace(/[-:T]/g, '').slice(0, 14);
  const year = Number(digits.slice(0, 4));
  return year < 2050
    ? der(Tag.UTC_TIME, Buffer.from(`${digits.slice(2)}Z`))
    : der(Tag.GENERALIZED_TIME, Buffer.from(`${digits}Z`));
}

/** The elements that follow each other in `bytes`. Throws a RangeError when they are not whole. */
export function readElements(bytes: Uint8Array): DerElement[] {
  const elements: DerElement[] = [];
  for (let i = 0; i < bytes.length; ) {
    const tag = bytes[i]!;
    let length = bytes[i + 1] ?? Number.NaN;
    let start = i + 2;
    if (length > 0x80) {
      const digits = bytes.subarray(start, start + length - 0x80);
      start += length - 0x80;
      length = digits.reduce((sum, digit) => sum * 256 + digit, 0);
    }
    const end = start + length;
    if (!(end <= bytes.length)) throw new RangeError('DER element is cut off');
    elements.push({ tag, content: bytes.subarray(start, end) });
    i = end;
  }
  return elements;
}

function derLength(length: number): Uint8Array {
  if (length < 0x80) return Uint8Array.of(length);
  const digits: number[] = [];
  for (let value = length; value > 0; value = Math.floor(value / 256)) digits.unshift(value & 0xff);
  return Uint8Array.of(0x80 | digits.length, ...digits);
}
