// Bytes waiting in order: the socket buffers of the simulated kernel and what peers still have to send.

/** A first-in, first-out queue of bytes that grows as needed. */
export class ByteQueue {
  private bytes = new Uint8Array(512);
  private head = 0;
  private tail = 0;

  /** Number of bytes waiting. */
  get length(): number {
    return this.tail - this.head;
  }

  /** Appends a copy of `source`. */
  push(source: Uint8Array): void {
    if (this.tail + source.length > this.bytes.length) this.makeRoom(source.length);
    this.bytes.set(source, this.tail);
    this.tail += source.length;
  }

  /** The next `count` bytes (or as many as there are), valid until the queue changes. */
  peek(count: number): Uint8Array {
    return this.bytes.subarray(this.head, Math.min(this.tail, this.head + count));
  }

  /** Removes up to `count` bytes. */
  drop(count: number): void {
    this.head = Math.min(this.tail, this.head + count);
    if (this.head === this.tail) this.head = this.tail = 0;
  }

  /** Removes and returns a copy of up to `count` bytes. */
  take(count: number): Uint8Array {
    const out = this.peek(count).slice();
    this.drop(count);
    return out;
  }

  /** Forgets everything. */
  clear(): void {
    this.head = this.tail = 0;
  }

  private makeRoom(extra: number): void {
    const used = this.length;
    const target = used + extra > this.bytes.length / 2 ? new Uint8Array((used + extra) * 2) : this.bytes;
    target.set(this.bytes.subarray(this.head, this.tail));
    this.bytes = target;
    this.head = 0;
    this.tail = used;
  }
}
