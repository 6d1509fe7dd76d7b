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
	const start = 0x9e3779b9 + 3923095
	a := start + uint32(len(s))
	b, c := a, a
	var block [12]byte
	for len(s) >= len(block) {
		copy(block[:], s)
		a, b, c = mix(add(a, b, c, &block))
		s = s[len(block):]
	}

	// The rest is a block padded with zeros, except that its last word is shifted by one byte: the
	// lowest byte of c is reserved for the length.
	block = [12]byte{}
	if n := copy(block[:8], s); n == 8 {
		copy(block[9:], s[8:])
	}
	return final(add(a, b, c, &block))
}

func add(a, b, c uint32, block *[12]byte) (x, y, z uint32) {
	return a + binary.LittleEndian.Uint32(block[0:]),
		b + binary.LittleEndian.Uint32(block[4:]),
		c + binary.LittleEndian.Uint32(block[8:])
}

func mix(a, b, c uint32) (x, y, z uint32) {
	a = (a - c) ^ bits.RotateLeft32(c, 4)
	c += b
	b = (b - a) ^ bits.RotateLeft32(a, 6)
	a += c
	c = (c - b) ^ bits.RotateLeft32(b, 8)
	b += a
	a = (a - c) ^ bits.RotateLeft32(c, 16)
	c += b
	b = (b - a) ^ bits.RotateLeft32(a, 19)
	a += c
	c = (c - b) ^ bits.RotateLeft32(b, 4)
	b += a
	return a, b, c
}

func final(a, b, c uint32) uint32 {
	c = (c ^ b) - bits.RotateLeft32(b, 14)
	a = (a ^ c) - bits.RotateLeft32(c, 11)
	b = (b ^ a) - bits.RotateLeft32(a, 25)
	c = (c ^ b) - bits.RotateLeft32(b, 16)
	a = (a ^ c) - bits.RotateLeft32(c, 4)
	b = (b ^ a) - bits.RotateLeft32(a, 14)
	return (c ^ b) - bits.RotateLeft32(b, 24)
}
