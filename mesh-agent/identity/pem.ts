// PEM: certificates, requests and keys as text (RFC 7468). Strict: one label, no text in between.

/** DER as PEM with a label such as `CERTIFICATE`. */
export function toPem(label: string, der: Uint8Array): string {
  const base64 = Buffer.from(der.buffer, der.byteOffset, der.byteLength).toString('base64');
  return `-----BEGIN ${label}-----\n${base64.replace(/.{64}(?=.)/g, '$&\n')}\n-----END ${label}-----\n`;
}

/** The DER of a text that holds exactly one block with the label; null for anything else. */
export function fromPem(label: string, text: string): Buffer | null {
  const begin = `-----BEGIN ${label}-----`;
  const end = `-----END ${label}-----`;
  const trimmed = text.trim();
  if (!trimmed.startsWith(begin) || !trimmed.endsWith(end)) return null;
  const base64 = trimmed.slice(begin.length, -end.length).replace(/[ \t\r\n]+/g, '');
  if (base64.length === 0 || base64.length % 4 !== 0 || !/^[A-Za-z0-9+/]+={0,2}$/.test(base64)) return null;
  return Buffer.from(base64, 'base64');
}

/** The certificates of a PEM text, each as a text of its own with a line end; other blocks are passed over. */
export function splitCertificates(text: string): string[] {
  const blocks = text.match(/-----BEGIN CERTIFICATE-----[^-]+-----END CERTIFICATE-----/g) ?? [];
  return blocks.map((block) => `${block.replace(/\r/g, '')}\n`);
}
