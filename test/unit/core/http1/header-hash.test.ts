import assert from 'node:assert/strict';
import { test } from 'node:test';
import { knownHeaderId } from '../../../../core/http1/header-hash.ts';
import { HeaderId, headerNames } from '../../../../core/http1/header-ids.ts';

function idOf(name: string): number {
  const bytes = new Uint8Array(Buffer.from(`..${name}..`, 'latin1'));
  return knownHeaderId(bytes, 2, name.length);
}

test('names and numbers of known headers belong together', () => {
  for (const [constant, id] of Object.entries(HeaderId)) {
    if (id !== HeaderId.OTHER) assert.equal(headerNames[id], constant.toLowerCase().replaceAll('_', '-'));
  }
  assert.equal(headerNames.length, Object.keys(HeaderId).length);
});

test('every known name is found, in any case', () => {
  for (let id = 1; id < headerNames.length; id++) {
    const name = headerNames[id];
    const mixed = [...name].map((letter, i) => (i % 2 === 0 ? letter.toUpperCase() : letter)).join('');
    for (const spelling of [name, name.toUpperCase(), mixed]) assert.equal(idOf(spelling), id, spelling);
  }
});

test('a name that differs from a known one in any byte, or in length, is not known', () => {
  const tokenBytes = "!#$%&'*+-.^_`|~0123456789abcdefghijklmnopqrstuvwxyz";
  const known = new Set(headerNames);
  for (const name of headerNames.slice(1)) {
    for (let at = 0; at < name.length; at++) {
      for (const byte of tokenBytes) {
        const other = name.slice(0, at) + byte + name.slice(at + 1);
        if (!known.has(other)) assert.equal(idOf(other), HeaderId.OTHER, other);
      }
      const shorter = name.slice(0, at) + name.slice(at + 1);
      if (shorter.length > 0 && !known.has(shorter)) assert.equal(idOf(shorter), HeaderId.OTHER, shorter);
      const longer = `${name.slice(0, at)}x${name.slice(at)}`;
      if (!known.has(longer)) assert.equal(idOf(longer), HeaderId.OTHER, longer);
    }
  }
});
