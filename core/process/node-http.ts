// node:http as a start that is in a hurry takes it: importing it reads every export, and one of those
// loads Node's whole fetch with it (15 ms).

/** What the gateway uses of node:http. */
export const { createServer, get, request } = process.getBuiltinModule('node:http');
