package fastpath

// Only who changes tc.bpf.c or a header needs this: Debian packages clang-14, llvm-14, libbpf-dev and linux-libc-dev. What it
// makes is committed.
//
//go:generate go run github.com/cilium/ebpf/cmd/bpf2go@v0.22.0 -tags linux -target bpfel,bpfeb -cc clang-14 -strip llvm-strip-14 -no-global-types -type flow -type hop -type key -type tuple -type conn -type rule -type counts -type allow_key -type client -type channel_key tc tc.bpf.c -- -O2 -mllvm -no-stack-slot-sharing -Wall -Werror -mcpu=v3 -I/usr/include/x86_64-linux-gnu
