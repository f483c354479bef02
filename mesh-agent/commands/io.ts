// Where commands of the mesh write.

/** Standard output and standard error of a command. */
export interface MeshIo {
  out: (text: string) => void;
  err: (text: string) => void;
}
