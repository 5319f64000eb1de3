package fastpath

import (
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/btf"
)

// layoutEdition changes when the meaning of a field of the maps does, but not its place.
const layoutEdition = 1

// layoutOf names the layout of everything that outlives a daemon: the maps, their keys and values, field by
// field, and the program's variables. Two programs with the same name understand each other's maps.
func layoutOf(spec *ebpf.CollectionSpec) string {
	h := sha256.New()
	fmt.Fprintln(h, layoutEdition)
	for _, name := range slices.Sorted(maps.Keys(spec.Maps)) {
		if m := spec.Maps[name]; outlives(name) {
			fmt.Fprintln(h, name, m.Type, m.KeySize, m.ValueSize, m.MaxEntries, m.Flags)
			if !strings.HasPrefix(name, ".") { // of these the variables tell more
				describe(h, m.Key)
				describe(h, m.Value)
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(spec.Variables)) {
		if v := spec.Variables[name]; !v.Constant() {
			fmt.Fprintln(h, name, v.SectionName, v.Offset, v.Size())
		}
	}
	return hex.EncodeToString(h.Sum(nil)[:6])
}

// outlives tells whether a map is more than a part of the program: constants are not.
func outlives(name string) bool { return !strings.HasPrefix(name, ".rodata") }

// describe writes a type as the Go type with the same layout.
func describe(w io.Writer, t btf.Type) {
	if t == nil {
		return
	}
	text, err := (&btf.GoFormatter{}).TypeDeclaration("t", t)
	if err != nil {
		size, _ := btf.Sizeof(t)
		text = fmt.Sprintf("%v %d", t, size)
	}
	fmt.Fprintln(w, text)
}
