package content

import (
	"bytes"
	"slices"
)

// headSize is how much of a file tells its kind, in octets.
const headSize = 512

// Groups of kinds.
const (
	groupExecutable = "executable"
	groupArchive    = "archive"
	groupDocument   = "document"
	groupMedia      = "media"
)

// kind is a kind of file, and what such files begin with.
type kind struct {
	name, group string
	// magic stands at offset at.
	magic string
	at    int
	// fold says that magic is text, in lower case, and white space may stand before it.
	fold bool
}

// is tells whether the kind or its group has the name.
func (k kind) is(name string) bool { return name == k.name || name == k.group }

// kinds is the table, the more special ones first.
func kinds() []kind {
	return []kind{
		{name: "exe", group: groupExecutable, magic: "MZ"},
		{name: "exe", group: groupExecutable, magic: "ZM"},
		{name: "elf", group: groupExecutable, magic: "\x7fELF"},
		{name: "class", group: groupExecutable, magic: "\xca\xfe\xba\xbe"}, // Java, and Mach-O for several processors
		{name: "macho", group: groupExecutable, magic: "\xfe\xed\xfa\xce"},
		{name: "macho", group: groupExecutable, magic: "\xfe\xed\xfa\xcf"},
		{name: "macho", group: groupExecutable, magic: "\xce\xfa\xed\xfe"},
		{name: "macho", group: groupExecutable, magic: "\xcf\xfa\xed\xfe"},
		{name: "dex", group: groupExecutable, magic: "dex\n"},
		{name: "wasm", group: groupExecutable, magic: "\x00asm"},
		{name: "lnk", group: groupExecutable, magic: "L\x00\x00\x00\x01\x14\x02\x00"},
		{name: "chm", group: groupExecutable, magic: "ITSF"},
		{name: "hlp", group: groupExecutable, magic: "?_\x03\x00"},
		{name: "swf", group: groupExecutable, magic: "FWS"},
		{name: "swf", group: groupExecutable, magic: "CWS"},
		{name: "swf", group: groupExecutable, magic: "ZWS"},
		{name: "reg", group: groupExecutable, magic: "regedit4", fold: true},
		{name: "reg", group: groupExecutable, magic: "windows registry editor", fold: true},
		{name: "script", group: groupExecutable, magic: "#!"},
		{name: "script", group: groupExecutable, magic: "@echo", fold: true},
		{name: "script", group: groupExecutable, magic: "<script", fold: true},
		{name: "script", group: groupExecutable, magic: "<?php", fold: true},
		{name: "script", group: groupExecutable, magic: "<job", fold: true},
		{name: "script", group: groupExecutable, magic: "on error resume next", fold: true},
		{name: "ole", group: groupDocument, magic: "\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"}, // Office up to 2003, MSI
		{name: "pdf", group: groupDocument, magic: "%PDF-"},
		{name: "rtf", group: groupDocument, magic: "{\\rtf"},
		{name: "html", group: groupDocument, magic: "<!doctype html", fold: true},
		{name: "html", group: groupDocument, magic: "<html", fold: true},
		{name: "xml", group: groupDocument, magic: "<?xml", fold: true},
		{name: "ps", group: groupDocument, magic: "%!PS"},
		{name: "zip", group: groupArchive, magic: "PK\x03\x04"}, // Office from 2007, JAR, APK too
		{name: "zip", group: groupArchive, magic: "PK\x05\x06"},
		{name: "zip", group: groupArchive, magic: "PK\x07\x08"},
		{name: "rar", group: groupArchive, magic: "Rar!\x1a\x07"},
		{name: "7z", group: groupArchive, magic: "7z\xbc\xaf\x27\x1c"},
		{name: "gzip", group: groupArchive, magic: "\x1f\x8b"},
		{name: "bzip2", group: groupArchive, magic: "BZh"},
		{name: "xz", group: groupArchive, magic: "\xfd7zXZ\x00"},
		{name: "zstd", group: groupArchive, magic: "\x28\xb5\x2f\xfd"},
		{name: "cab", group: groupArchive, magic: "MSCF"},
		{name: "arj", group: groupArchive, magic: "\x60\xea"},
		{name: "ace", group: groupArchive, magic: "**ACE**", at: 7},
		{name: "lzh", group: groupArchive, magic: "-lh", at: 2},
		{name: "tar", group: groupArchive, magic: "ustar", at: 257},
		{name: "jpeg", group: groupMedia, magic: "\xff\xd8\xff"},
		{name: "png", group: groupMedia, magic: "\x89PNG\r\n\x1a\n"},
		{name: "gif", group: groupMedia, magic: "GIF8"},
		{name: "bmp", group: groupMedia, magic: "BM"},
		{name: "tiff", group: groupMedia, magic: "II*\x00"},
		{name: "tiff", group: groupMedia, magic: "MM\x00*"},
		{name: "wmf", group: groupMedia, magic: "\xd7\xcd\xc6\x9a"},
		{name: "riff", group: groupMedia, magic: "RIFF"}, // WAV, AVI, WebP, animated cursors
		{name: "ogg", group: groupMedia, magic: "OggS"},
		{name: "asf", group: groupMedia, magic: "\x30\x26\xb2\x75\x8e\x66\xcf\x11"},
		{name: "mp3", group: groupMedia, magic: "ID3"},
		{name: "mp4", group: groupMedia, magic: "ftyp", at: 4},
		{name: "mkv", group: groupMedia, magic: "\x1a\x45\xdf\xa3"},
	}
}

// Kinds returns the names of all kinds of files and groups of them, sorted.
func Kinds() []string {
	var names []string
	for _, k := range kinds() {
		names = append(names, k.name, k.group)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// sniff returns the kind of the file that begins with head; without a name if it is none of the table.
func sniff(head []byte) kind {
	text := foldText(head)
	for _, k := range kinds() {
		if k.fold && bytes.HasPrefix(text, []byte(k.magic)) ||
			!k.fold && len(head) > k.at && bytes.HasPrefix(head[k.at:], []byte(k.magic)) {
			return k
		}
	}
	return kind{}
}

// foldText returns the text that a file begins with in lower case, without the marks of UTF-8 and UTF-16 and
// the white space that interpreters skip.
func foldText(head []byte) []byte {
	head = bytes.TrimPrefix(head, []byte("\xef\xbb\xbf"))
	if wide, ok := bytes.CutPrefix(head, []byte("\xff\xfe")); ok {
		head = bytes.ReplaceAll(wide, []byte{0}, nil)
	} else if wide, ok := bytes.CutPrefix(head, []byte("\xfe\xff")); ok {
		head = bytes.ReplaceAll(wide, []byte{0}, nil)
	}
	return bytes.ToLower(bytes.TrimLeft(head, " \t\r\n"))
}
