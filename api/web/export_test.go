package web

// PlaceOf is placeOf, for its test.
var PlaceOf = placeOf
