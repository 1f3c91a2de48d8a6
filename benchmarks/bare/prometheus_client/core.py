class CounterMetricFamily:
    def __init__(self, *_: object, **__: object) -> None:
        pass

    def add_metric(self, *_: object, **__: object) -> None:
        pass


GaugeMetricFamily = CounterMetricFamily
