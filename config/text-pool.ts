// The bytes section of a route table while it is written: texts, each once, and tables of bytes.
// Owned by one compilation.

/** Collects texts and gives out their offset and length. */
export class TextPool {
  length = 0;
  private readonly chunks: Uint8Array[] = [];
  private readonly places = new Map<string, [offset: number, length: number]>();

  /** Adds a text as UTF-8. */
  add(text: string): [offset: number, length: number] {
    const known = this.places.get(text);
    if (known !== undefined) return known;
    const bytes = new TextEncoder().encode(text);
    const place: [number, number] = [this.addBytes(bytes), bytes.length];
    this.places.set(text, place);
    return place;
  }

  /** Adds bytes as they are; returns their offset. */
  addBytes(bytes: Uint8Array): number {
    const offset = this.length;
    this.chunks.push(bytes);
    this.length += bytes.length;
    return offset;
  }

  /** Writes everything to the start of `target`. */
  copyTo(target: Uint8Array): void {
    let offset = 0;
    for (const chunk of this.chunks) {
      target.set(chunk, offset);
      offset += chunk.length;
    }
  }
}
