// A constant that short commands import without the schema. Pure.

/** Where the node proxy's admin port listens unless configured otherwise. */
export const NODE_ADMIN_DEFAULT = '127.0.0.1:9902';
