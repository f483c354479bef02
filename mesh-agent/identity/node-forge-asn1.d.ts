// The one part of node-forge that is used, which its published types know as a part of the whole.

declare module 'node-forge/lib/asn1.js' {
  const asn1: typeof import('node-forge').asn1;
  export default asn1;
}
