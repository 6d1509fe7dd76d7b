package pgstore

import (
	"encoding/binary"
	"math/bits"
)

// hashText returns PostgreSQL's hashtext(s), as the bits of its integer. The proxy uses it to map a
// coupon to a partition (db/proxy). It is lookup3 by Bob Jenkins (public domain) with PostgreSQL's
// initial values (hash_bytes in src/common/hashfn.c), as computed on little-endian machines.
//
// It is used only to group claims by shard. If it is wrong (on another machine, by a later
// PostgreSQL), claims are grouped less well, and the outcomes are the same.
func hashText(s string) uint32 {
	a := 0x9e3779b9 + 3923095 + uint32(len(s))
	b, c := a, a
	var block [12]byte
	for len(s) >= len(block) {
		copy(block[:], s)
		a, b, c = add(a, b, c, &block)
		for _, shift := range [...]int{4, 6, 8, 16, 19, 4} {
			a = (a - c) ^ bits.RotateLeft32(c, shift)
			c += b
			a, b, c = b, c, a
		}
		s = s[len(block):]
	}

	// The rest is a block padded with zeros, except that its last word is shifted by one byte: the
	// lowest byte of c is reserved for the length.
	block = [12]byte{}
	if n := copy(block[:8], s); n == 8 {
		copy(block[9:], s[8:])
	}
	a, b, c = add(a, b, c, &block)
	for _, shift := range [...]int{14, 11, 25, 16, 4, 14, 24} {
		c = (c ^ b) - bits.RotateLeft32(b, shift)
		a, b, c = b, c, a
	}
	return b
}

func add(a, b, c uint32, block *[12]byte) (x, y, z uint32) {
	return a + binary.LittleEndian.Uint32(block[0:]),
		b + binary.LittleEndian.Uint32(block[4:]),
		c + binary.LittleEndian.Uint32(block[8:])
}
