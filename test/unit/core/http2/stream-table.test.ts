// The table that finds streams by number, against a Map.

import assert from 'node:assert/strict';
import { test } from 'node:test';
import { Http2Stream, StreamTable } from '../../../../core/http2/stream.ts';
import { seededRandom } from '../io/seed.ts';

test('streams are found as in a Map, whatever is added and removed in which order', (t) => {
  const { random, label } = seededRandom(t);
  for (let run = 0; run < 50; run++) {
    const table = new StreamTable();
    const model = new Map<number, Http2Stream>();
    let nextId = 1;
    for (let step = 0; step < 400; step++) {
      // Numbers grow, with gaps: refused streams never get in.
      if (random.chance(step < 250 ? 0.6 : 0.3) || model.size === 0) {
        const stream = new Http2Stream();
        stream.id = nextId;
        nextId += 2 * (1 + random.int(0, 19));
        table.add(stream);
        model.set(stream.id, stream);
      } else {
        const ids = [...model.keys()];
        const id = ids[random.int(0, ids.length - 1)];
        table.remove(model.get(id)!);
        model.delete(id);
      }
      assert.equal(table.count, model.size);
      if (step % 20 !== 0) continue;
      for (let id = 1; id < nextId; id += 2) assert.equal(table.get(id), model.get(id) ?? null, `${label}, id ${id}`);
    }
    const inTable = new Set<Http2Stream>();
    for (let slot = 0; slot < table.capacity; slot++) {
      const stream = table.at(slot);
      if (stream !== null) inTable.add(stream);
    }
    assert.deepEqual(inTable, new Set(model.values()));
  }
});
