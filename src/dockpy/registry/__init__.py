"""Images to and from registries, by the OCI distribution protocol.

names settings manifests challenges origins progress     decide: no sockets
transport auth client                                    talk
blobs pull compressing push                              move layers
service                                                  what `Runtime` has of it
"""
