Collector = object
