// Status lines for responses that came without a reason phrase, as those of HTTP/2 do, and for generated ones.
// HTTP/1 allows an empty one, but not every client does.
// Source: IANA HTTP Status Code Registry. Immutable after load, but for lines made when first needed.

import { Text } from '../io/bytes.ts';

const phrases: Readonly<Record<number, string>> = {
  100: 'Continue',
  101: 'Switching Protocols',
  102: 'Processing',
  103: 'Early Hints',
  200: 'OK',
  201: 'Created',
  202: 'Accepted',
  203: 'Non-Authoritative Information',
  204: 'No Content',
  205: 'Reset Content',
  206: 'Partial Content',
  207: 'Multi-Status',
  208: 'Already Reported',
  226: 'IM Used',
  300: 'Multiple Choices',
  301: 'Moved Permanently',
  302: 'Found',
  303: 'See Other',
  304: 'Not Modified',
  305: 'Use Proxy',
  307: 'Temporary Redirect',
  308: 'Permanent Redirect',
  400: 'Bad Request',
  401: 'Unauthorized',
  402: 'Payment Required',
  403: 'Forbidden',
  404: 'Not Found',
  405: 'Method Not Allowed',
  406: 'Not Acceptable',
  407: 'Proxy Authentication Required',
  408: 'Request Timeout',
  409: 'Conflict',
  410: 'Gone',
  411: 'Length Required',
  412: 'Precondition Failed',
  413: 'Content Too Large',
  414: 'URI Too Long',
  415: 'Unsupported Media Type',
  416: 'Range Not Satisfiable',
  417: 'Expectation Failed',
  421: 'Misdirected Request',
  422: 'Unprocessable Content',
  423: 'Locked',
  424: 'Failed Dependency',
  425: 'Too Early',
  426: 'Upgrade Required',
  428: 'Precondition Required',
  429: 'Too Many Requests',
  431: 'Request Header Fields Too Large',
  451: 'Unavailable For Legal Reasons',
  500: 'Internal Server Error',
  501: 'Not Implemented',
  502: 'Bad Gateway',
  503: 'Service Unavailable',
  504: 'Gateway Timeout',
  505: 'HTTP Version Not Supported',
  506: 'Variant Also Negotiates',
  507: 'Insufficient Storage',
  508: 'Loop Detected',
  511: 'Network Authentication Required',
};

/** Bytes of the longest status line, line end and what its text may spill included. */
export const STATUS_LINE_BYTES_MAX = 64;

/** Bytes of a status line before its reason phrase: "HTTP/1.1 200 ". */
export const PHRASE_AT = 13;

const lines: (Text | undefined)[] = new Array(600).fill(undefined);

/** `HTTP/1.1 200 OK` with its line end, for a status from 100 to 599; the phrase is empty where there is none. */
export function statusLine(status: number): Text {
  let line = lines[status];
  if (line === undefined) {
    line = new Text(`HTTP/1.1 ${status} ${phrases[status] ?? ''}\r\n`);
    lines[status] = line;
  }
  return line;
}

const texts: (Text | undefined)[] = new Array(600).fill(undefined);

/** `404 Not Found: `, or `599: ` where there is no phrase: how the body of a generated response begins. */
export function statusText(status: number): Text {
  let text = texts[status];
  if (text === undefined) {
    const phrase = phrases[status];
    text = new Text(`${status}${phrase === undefined ? '' : ` ${phrase}`}: `);
    texts[status] = text;
  }
  return text;
}
