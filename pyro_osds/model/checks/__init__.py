"""What is looked at before a model is fitted: is its density the same each time, and are its observations possible?"""
