/* The client's plain way; see quick.c. */
#ifndef DOCKPY_QUICK_H
#define DOCKPY_QUICK_H

enum { QUICK_NOT = -1 };

/* Carry a command line out and leave the process with its exit code. Returns only when the Python client is needed:
 * QUICK_NOT when nothing was done yet, else a descriptor that says how far it has come. */
int quick(int argc, char **argv);

#endif
