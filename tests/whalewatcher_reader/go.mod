module whalebridge.test/whalewatcher-reader

go 1.25
