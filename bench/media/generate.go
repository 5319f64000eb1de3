package main

// Only who changes wire.bpf.c needs this: Debian packages clang-14, llvm-14, libbpf-dev and linux-libc-dev. What it
// makes is committed.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go@v0.22.0 -tags linux -target bpfel,bpfeb -cc clang-14 -strip llvm-strip-14 -no-global-types -type plan -type made -type stream -type tally wire wire.bpf.c -- -O2 -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu
